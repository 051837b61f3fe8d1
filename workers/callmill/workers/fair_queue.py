"""FairQueue: the waiting calls of one lane, by traffic class, and whose turn it is.

Each class has its own line of calls. Turns follow start-time fair queueing: a class's virtual time moves on by
``1 / weight`` with every call taken from it, and the class that is furthest behind is next. A class that was empty
begins at the time of the one whose turn it is: it has saved up nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice, takewhile
from operator import attrgetter

from callmill.jobs.traffic import TrafficClass
from callmill.workers.call import Call, CallOwner
from callmill.workers.pace import Pace

_LOOKED_AT = 1000


class ClassLine:
    """The calls of one class that wait in one lane.

    Attributes:
        calls: Those that wait, the next one first.
        weight: The class's part while all want more than there is.
        started: Attempts made so far, and ``pace``, how many a second lately.
        askers: Tasks that wait for a slot of the limiter with a call of this class, in their order, and its owner.
        virtual_time: What it was served so far, by its weight.
    """

    __slots__ = ("askers", "calls", "pace", "started", "traffic", "virtual_time", "weight")

    def __init__(self, traffic: TrafficClass, weight: float) -> None:
        self.traffic = traffic
        self.weight = weight
        self.calls: deque[Call] = deque()
        self.askers: dict[asyncio.Task[None], CallOwner] = {}
        self.started = 0
        self.pace = Pace()
        self.virtual_time = 0.0

    @property
    def waiting(self) -> int:
        """Calls taken in and not started."""
        return len(self.calls) + len(self.askers)

    def plain_ahead(self, most: int) -> int:
        """How many of its next calls, up to so many, come before one that counts as several requests."""
        return sum(1 for _ in takewhile(_is_plain, islice(self.calls, most)))


def _is_plain(call: Call) -> bool:
    cost = call.job.cost
    return cost is None or cost.weight == 1


_virtual_time = attrgetter("virtual_time")


class FairQueue:
    """The lines of one lane. ``len()`` is the number of calls in them.

    Args:
        weight_of: Returns the weight of a class, above 0.
    """

    def __init__(self, weight_of: Callable[[TrafficClass], float]) -> None:
        self._weight_of = weight_of
        self._lines: dict[TrafficClass, ClassLine] = {}
        self._active: dict[ClassLine, None] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def line(self, traffic: TrafficClass) -> ClassLine:
        """Return the line of a class."""
        line = self._lines.get(traffic)
        if line is None:
            line = self._lines[traffic] = ClassLine(traffic, self._weight_of(traffic))
        return line

    def lines(self) -> list[ClassLine]:
        """Return every line."""
        return list(self._lines.values())

    def drop(self, traffic: TrafficClass) -> None:
        """Forget the line of a class, if nothing waits in it."""
        line = self._lines.get(traffic)
        if line is not None and not line.waiting:
            del self._lines[traffic]

    def add(self, owner: CallOwner, calls: Iterable[Call], *, first: bool = False) -> None:
        """Let calls of one owner wait in their order, behind or before those of their class."""
        line = self.line(owner.traffic)
        before = len(line.calls)
        if first:
            line.calls.extendleft(reversed(list(calls)))
        else:
            line.calls.extend(calls)
        self._grown(line, len(line.calls) - before)

    def add_first(self, call: Call) -> None:
        """Let a call wait, before those of its class."""
        line = self.line(call.owner.traffic)
        line.calls.appendleft(call)
        self._grown(line, 1)

    def forget(self, owner: CallOwner) -> None:
        """Drop the calls of an owner."""
        line = self.line(owner.traffic)
        before = len(line.calls)
        line.calls = deque(call for call in line.calls if call.owner is not owner)
        self._size -= before - len(line.calls)
        if not line.calls:
            self._active.pop(line, None)

    def take(self) -> Call | None:
        """Take the next call of the line whose turn it is; None: nothing waits."""
        if len(self._active) > 1:
            return self.take_from(min(self._active, key=_virtual_time))
        return self.take_from(next(iter(self._active))) if self._active else None

    def take_to_ask(self) -> Call | None:
        """Take the next call of the line that asks least, by its weight; among equals, of the one whose turn it is."""
        if len(self._active) > 1:
            return self.take_from(min(self._active, key=_asks))
        return self.take_from(next(iter(self._active))) if self._active else None

    def take_from(self, line: ClassLine) -> Call | None:
        """Take the next call of a line; None: nothing waits there."""
        if not line.calls:
            return None
        call = line.calls.popleft()
        self._size -= 1
        if len(self._active) > 1:
            line.virtual_time += 1 / line.weight
        if not line.calls:
            del self._active[line]
        return call

    def take_best(
        self, rank_line: Callable[[ClassLine], tuple[float, ...]], rank_call: Callable[[Call], tuple[float, ...]]
    ) -> Call | None:
        """Take the lowest-ranked of the first thousand calls of the lowest-ranked line; None: nothing waits."""
        if not self._active:
            return None
        line = min(self._active, key=rank_line)
        call = min(islice(line.calls, _LOOKED_AT), key=rank_call)
        line.calls.remove(call)
        line.calls.appendleft(call)
        return self.take_from(line)

    def sort(self, rank: Callable[[Call], tuple[float, ...]]) -> None:
        """Sort the calls of each line by rank, lowest first; the sort is stable."""
        for line in self._active:
            line.calls = deque(sorted(line.calls, key=rank))

    def share(self, line: ClassLine) -> float:
        """Return the part of what there is that a line gets if it wants it, while the others want theirs."""
        others = sum(other.weight for other in self._active if other is not line)
        return line.weight / (line.weight + others)

    @property
    def unheard(self) -> bool:
        """Whether, of several lines, one has calls of which none asks."""
        return len(self._lines) > 1 and any(not line.askers for line in self._active)

    @property
    def loudest(self) -> ClassLine:
        """The line that asks most, by its weight."""
        return max(self._lines.values(), key=lambda line: len(line.askers) / line.weight)

    def _grown(self, line: ClassLine, calls: int) -> None:
        self._size += calls
        if line.calls and line not in self._active:
            if self._active:
                line.virtual_time = max(line.virtual_time, min(map(_virtual_time, self._active)))
            self._active[line] = None


def _asks(line: ClassLine) -> tuple[float, float]:
    return len(line.askers) / line.weight, line.virtual_time
