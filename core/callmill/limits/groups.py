"""Groups: which kinds of calls one process tells apart now, and those that wait until it does.

Each model has limits of its own, so its calls need a group and leases of their own, and nobody knows how many models a
tenant will name. So a process keeps a bounded number of groups of calls that name models. A further kind of calls waits
until another one is idle; calls of one model are never counted in two places, whichever processes tell it apart.

A class may have as many groups as are left: one class alone gets half of them, two a third each. So there is always a
place for a class that comes, however many models another one names.

Source: Choudhury and Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", IEEE/ACM Transactions
on Networking 6(2), 1998.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from typing import TypeAlias

from callmill.config.limit_spec import Scope, Unit
from callmill.jobs.traffic import TrafficClass
from callmill.limits.group import Group
from callmill.limits.rules import LimitRules
from callmill.limits.waiting import WaitingCalls

MOST_MODELS, MOST_LEASED = 2000, 600
"""The second one where calls in flight are limited per model: each such lease is renewed every few seconds. Measured:
of 2 000 leases a busy process renews none in time."""

Kind: TypeAlias = tuple[str, TrafficClass, int]
"""Model, class and weight of calls."""


class Groups:
    """The groups of one API. ``len()`` is how many there are.

    Attributes:
        most: How many may be of calls that name models.
    """

    def __init__(self, rules: LimitRules) -> None:
        self.adopt(rules)
        self._groups: dict[Kind, Group] = {}
        self._of_model: dict[str, dict[Kind, Group]] = {}
        self._named: Counter[TrafficClass] = Counter()
        self._waiting: dict[TrafficClass, dict[Kind, WaitingCalls]] = {}

    def __len__(self) -> int:
        return len(self._groups)

    def adopt(self, rules: LimitRules) -> None:
        """Take note that other limits hold."""
        leased = any(spec.scope is Scope.MODEL and spec.unit is Unit.CONCURRENT for spec in rules.limits)
        self.most = MOST_LEASED if leased else MOST_MODELS

    def __iter__(self) -> Iterator[Group]:
        """Those of now; they may change meanwhile."""
        return iter(list(self._groups.values()))

    def items(self) -> list[tuple[Kind, Group]]:
        """Each with its kind."""
        return list(self._groups.items())

    def get(self, kind: Kind) -> Group | None:
        """The group of a kind of calls, if they are told apart."""
        return self._groups.get(kind)

    def of_model(self, model: str) -> Collection[Group]:
        """Those whose calls name this model."""
        return list(self._of_model.get(model, {}).values())

    @property
    def models(self) -> Collection[str]:
        """The models that are told apart."""
        return self._of_model.keys()

    @property
    def classes(self) -> Collection[TrafficClass]:
        """The classes of those that are there."""
        return {traffic for _, traffic, _ in self._groups}

    def add(self, kind: Kind, group: Group) -> None:
        """Tell a kind apart from now on."""
        model, traffic, _ = kind
        self._groups[kind] = group
        self._of_model.setdefault(model, {})[kind] = group
        self._named[traffic] += bool(model)

    def remove(self, kind: Kind) -> None:
        """Tell it apart no more."""
        model, traffic, _ = kind
        del self._groups[kind], self._of_model[model][kind]
        if not self._of_model[model]:
            del self._of_model[model]
        self._named[traffic] -= bool(model)
        if not self._named[traffic]:
            del self._named[traffic]

    def has_place(self, kind: Kind) -> bool:
        """Whether one more of its kind may be told apart; calls that name no model always are."""
        model, traffic, _ = kind
        return not model or self._named[traffic] < self.most - self._named.total()

    def line_up(self, kind: Kind, calls: WaitingCalls) -> None:
        """Let calls of a kind wait for a place."""
        self._waiting.setdefault(kind[1], {})[kind] = calls

    def waiting_as(self, kind: Kind) -> WaitingCalls | None:
        """The calls of a kind, if they wait for a place."""
        return self._waiting.get(kind[1], {}).get(kind)

    @property
    def waiting(self) -> list[WaitingCalls]:
        """All calls that wait for a place."""
        return [calls for kinds in self._waiting.values() for calls in kinds.values()]

    def next(self) -> tuple[Kind, WaitingCalls] | None:
        """Take the next kind for which there is a place: of each class in turn the one that waits longest."""
        for traffic, kinds in list(self._waiting.items()):
            while kinds and self.has_place(next(iter(kinds))):
                kind = next(iter(kinds))
                calls = kinds.pop(kind)
                if calls.any:  # else they were given back meanwhile
                    self._waiting[traffic] = self._waiting.pop(traffic)
                    return kind, calls
            if not kinds:
                del self._waiting[traffic]
        return None
