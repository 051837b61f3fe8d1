"""Whose turn it is in a lane."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callmill.jobs.traffic import NORMAL, Priority, TrafficClass
from callmill.jobs.wire import WireCost, WireJob
from callmill.workers.call import Call
from callmill.workers.fair_queue import FairQueue

WEIGHTS = st.lists(st.sampled_from([0.001, 0.5, 1.0, 3.0, 4.0, 8.0, 24.0]), min_size=1, max_size=6)


@dataclass
class Owner:
    """Owns calls of one class."""

    traffic: TrafficClass
    served: deque[Call] = field(default_factory=deque)

    def calls(self, count: int) -> list[Call]:
        """Return new calls, numbered."""
        return [Call(WireJob("GET", "/"), cast("Any", self), n, n, "") for n in range(count)]


def owner_of(call: Call | None) -> Any:
    """Return whose call it is; there must be one."""
    assert call is not None
    return call.owner


def made(weights: list[float], calls: int) -> tuple[FairQueue, list[Owner]]:
    """Return a queue with a tenant for each weight, each with so many calls, and the tenants."""
    owners = [Owner(TrafficClass(tenant=f"t{n}")) for n in range(len(weights))]
    queue = FairQueue(lambda traffic: weights[int(traffic.tenant[1:])])
    for owner in owners:
        queue.add(cast("Any", owner), owner.calls(calls))
    return queue, owners


@given(weights=WEIGHTS, turns=st.integers(1, 400))
def test_shares_follow_weights(weights, turns):
    """At any time every class has had its share of the turns, to within one call of each class."""
    queue, owners = made(weights, turns)
    served = Counter(owner_of(queue.take()).traffic for _ in range(turns))
    for owner, weight in zip(owners, weights, strict=True):
        share = turns * weight / sum(weights)
        assert abs(served[owner.traffic] - share) <= 1 + len(weights)


@given(weights=WEIGHTS)
def test_nobody_starves(weights):
    """However the others are weighted, a class has its first turn before any other one exceeds its weight's part."""
    weights = [max(weight, 0.5) for weight in weights]
    longest = int(sum(weights) / min(weights)) + 2 * len(weights)
    queue, owners = made(weights, longest)
    first = Counter(owner_of(queue.take()).traffic for _ in range(longest))
    assert all(first[owner.traffic] for owner in owners)


@given(data=st.data())
def test_calls_come_out_once_and_in_order(data):
    """Whatever comes and goes, each call is taken once, and those of one class in their order."""
    queue, owners = made([8.0, 4.0, 1.0], 0)
    waiting: dict[TrafficClass, list[Call]] = {owner.traffic: [] for owner in owners}
    for _ in range(data.draw(st.integers(1, 60))):
        owner = data.draw(st.sampled_from(owners))
        match data.draw(st.sampled_from(["add", "first", "take", "ask", "forget"])):
            case "add":
                calls = owner.calls(data.draw(st.integers(0, 4)))
                queue.add(cast("Any", owner), calls)
                waiting[owner.traffic] += calls
            case "first":
                (call,) = owner.calls(1)
                queue.add_first(call)
                waiting[owner.traffic].insert(0, call)
            case "forget":
                queue.forget(cast("Any", owner))
                waiting[owner.traffic].clear()
            case how if queue:
                call = queue.take() if how == "take" else queue.take_to_ask()
                assert waiting[owner_of(call).traffic].pop(0) is call
        assert len(queue) == sum(map(len, waiting.values()))


def test_class_that_was_idle_has_saved_up_nothing():
    """A class that comes late shares from then on; it does not catch up with what others had before."""
    queue, (early, late) = made([1.0, 1.0], 0)
    queue.add(cast("Any", early), early.calls(1000))
    for _ in range(500):
        queue.take()
    queue.add(cast("Any", late), late.calls(500))
    served = Counter(owner_of(queue.take()).traffic for _ in range(100))
    assert abs(served[early.traffic] - served[late.traffic]) <= 2


def test_whoever_asks_least_asks_next():
    """The class that asks least by its weight is next to ask, so that the limiter hears of each."""
    queue, (loud, quiet) = made([8.0, 1.0], 10)
    loud_line, quiet_line = queue.line(loud.traffic), queue.line(quiet.traffic)
    quiet_line.askers[cast("Any", 0)] = None
    loud_line.askers |= dict.fromkeys(cast("Any", range(7)))
    assert owner_of(queue.take_to_ask()) is loud
    loud_line.askers |= dict.fromkeys(cast("Any", range(9)))
    assert owner_of(queue.take_to_ask()) is quiet
    assert queue.loudest is loud_line
    assert not queue.unheard
    quiet_line.askers.clear()
    assert queue.unheard


def test_share_is_what_is_left_by_those_that_wait():
    """A class alone has everything; beside others that wait it has its weight's part."""
    queue, (big, small) = made([3.0, 1.0], 0)
    assert queue.share(queue.line(big.traffic)) == 1
    queue.add(cast("Any", small), small.calls(1))
    assert queue.share(queue.line(big.traffic)) == pytest.approx(0.75)


def test_line_with_calls_is_not_dropped():
    """A class is forgotten only when nothing of it waits."""
    queue, (owner,) = made([1.0], 1)
    line = queue.line(owner.traffic)
    queue.drop(owner.traffic)
    assert queue.line(owner.traffic) is line
    assert owner_of(queue.take()) is owner
    queue.drop(owner.traffic)
    assert queue.line(owner.traffic) is not line


def test_priorities_weigh_as_documented():
    """Interactive, normal and bulk share as 8, 4 and 1."""
    queue = FairQueue(lambda traffic: traffic.priority.weight)
    owners = [Owner(TrafficClass(priority)) for priority in Priority]
    for owner in owners:
        queue.add(cast("Any", owner), owner.calls(1300))
    served = Counter(owner_of(queue.take()).traffic.priority for _ in range(1300))
    assert [served[priority] for priority in Priority] == [pytest.approx(n, abs=2) for n in (800, 400, 100)]
    assert NORMAL.priority is Priority.NORMAL


def test_calls_that_go_first_keep_their_order():
    """Calls let in before the others of their class are taken before them, in their own order."""
    queue = FairQueue(lambda _: 1.0)
    waiting, back = Owner(NORMAL), Owner(NORMAL)
    queue.add(cast("Any", waiting), waiting.calls(2))
    queue.add(cast("Any", back), back.calls(3), first=True)
    taken = [queue.take() for _ in range(5)]
    assert [owner_of(call) for call in taken] == [back] * 3 + [waiting] * 2
    assert [call.offset for call in taken if call is not None] == [0, 1, 2, 0, 1]
    assert len(queue) == 0


@pytest.mark.parametrize(
    ("weights", "most", "plain"), [([1, 1, 1], 2, 2), ([1, 1, 4, 1], 9, 2), ([4, 1], 9, 0), ([], 3, 0)]
)
def test_slots_are_expected_for_calls_of_one_request_only(weights, most, plain):
    """Those that come before the first heavy call are counted, for a slot that is reserved ahead is of one request."""
    owner = Owner(NORMAL)
    queue = FairQueue(lambda traffic: traffic.priority.weight)
    jobs = [
        WireJob("GET", "/", cost=None if weight == 1 and n % 2 else WireCost(weight=weight))
        for n, weight in enumerate(weights)
    ]
    queue.add(cast("Any", owner), [Call(job, cast("Any", owner), n, n, "") for n, job in enumerate(jobs)])
    assert queue.line(NORMAL).plain_ahead(most) == plain
