"""Groups: how many models one process tells apart, and whose turn it is when there is a place for one more."""

from __future__ import annotations

from typing import cast

import pytest

from callmill.config.limit_spec import parse_limit
from callmill.jobs.traffic import Priority, TrafficClass
from callmill.limits.cost import Cost
from callmill.limits.group import Group
from callmill.limits.groups import MOST_LEASED, MOST_MODELS, Groups
from callmill.limits.rules import LimitRules
from callmill.limits.slots import Slot

HOSTILE, VICTIM, OTHER = (TrafficClass(Priority.NORMAL, name) for name in ("hostile", "victim", "other"))


class Waiting:
    """Calls that wait, or did."""

    def __init__(self, count: int = 1) -> None:
        self.wanting = count

    @property
    def any(self) -> bool:
        """See the port."""
        return self.wanting > 0

    def costs(self, skip: int, count: int) -> list[Cost]:
        """See the port."""
        raise NotImplementedError

    def start(self, slot: Slot) -> bool:
        """See the port."""
        raise NotImplementedError


def groups_of(limit: str = "50/second per model") -> Groups:
    """Return groups under such a limit."""
    return Groups(LimitRules((parse_limit(limit),)))


def fill(groups: Groups, traffic: TrafficClass) -> int:
    """Let a class name models until it has to wait; return how many are told apart."""
    for number in range(10 * MOST_MODELS):
        kind = (f"{traffic.tenant}-{number}", traffic, 1)
        if not groups.has_place(kind):
            return number
        groups.add(kind, cast(Group, object()))
    raise AssertionError("there is always room")


@pytest.mark.parametrize(
    ("limit", "most"), [("50/second per model", MOST_MODELS), ("5 concurrent per model", MOST_LEASED)]
)
def test_a_class_alone_has_half_of_the_places(limit, most):
    """However many models a class names, as many places as it has are left for others."""
    assert fill(groups_of(limit), HOSTILE) == most // 2


def test_there_is_always_a_place_for_a_class_that_comes():
    """Beside classes that take what they can get, a class that comes later gets some places too."""
    groups = groups_of()
    assert min(fill(groups, traffic) for traffic in (HOSTILE, OTHER, VICTIM)) >= MOST_MODELS // 8


def test_calls_without_a_model_wait_for_no_place():
    """Calls that name no model are bounded by their classes, and are always told apart."""
    groups = groups_of()
    fill(groups, HOSTILE)
    assert groups.has_place(("", HOSTILE, 1))


def test_a_place_that_comes_free_goes_to_who_waits_longest_in_its_class():
    """Kinds of one class follow in the order in which they came."""
    groups = groups_of()
    fill(groups, HOSTILE)
    for model in ("first", "second"):
        groups.line_up((model, HOSTILE, 1), Waiting())
    assert groups.next() is None
    groups.remove(("hostile-0", HOSTILE, 1))
    found = groups.next()
    assert found is not None
    assert found[0] == ("first", HOSTILE, 1)


def test_classes_take_turns_for_places():
    """Of each class one kind is next, whichever class lined up more kinds before."""
    groups = groups_of()
    for number in range(100):
        groups.line_up((f"m{number}", HOSTILE, 1), Waiting())
    groups.line_up(("own", VICTIM, 1), Waiting())
    taken = [groups.next() for _ in range(2)]
    assert ("own", VICTIM, 1) in [found[0] for found in taken if found is not None]


def test_kinds_of_which_no_call_waits_any_more_are_forgotten():
    """Calls that were given back while they waited for a place leave nothing behind."""
    groups = groups_of()
    for number in range(100):
        groups.line_up((f"m{number}", HOSTILE, 1), Waiting(0))
    assert groups.next() is None
    assert not groups.waiting
