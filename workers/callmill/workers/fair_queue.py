"""The calls that wait in one lane: a queue for each class of traffic and, within it, for each kind of call.

A kind is what the limiter tells apart: the model that a call names and how many requests it counts as, where limits
depend on it. Who goes first among the queues is for the limiter to say; see ``callmill.limits.turns``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from time import monotonic
from typing import TypeAlias
from weakref import WeakValueDictionary

from callmill.jobs.traffic import TrafficClass
from callmill.limits.pace import Pace
from callmill.workers.call import Call, CallOwner

Kind: TypeAlias = tuple[str, int]
"""The model, and how many requests a call counts as."""

PLAIN: Kind = ("", 1)
_LOOKED_AT = 1000
_MOST_GONE = 64
_MOST_EMPTY = 64


class _Stretch:
    """Calls of one owner that stand one behind the other."""

    __slots__ = ("calls", "owner", "since_s")

    def __init__(self, owner: CallOwner, calls: Iterable[Call]) -> None:
        self.owner = owner
        self.calls = deque(calls)
        self.since_s = monotonic()


class CallQueue:
    """The calls of one class and kind, the next one first.

    An owner's calls leave together in one step, however many they are: the queue is made of stretches of calls.

    Attributes:
        traffic: Their class.
        kind: Their kind.
        since_s: When the call that was taken last came (``time.monotonic()``).
    """

    def __init__(self, traffic: TrafficClass, kind: Kind) -> None:
        self.traffic = traffic
        self.kind = kind
        self.since_s = 0.0
        self._stretches: deque[_Stretch] = deque()
        self._of: dict[CallOwner, list[_Stretch]] = {}
        self._size = self._gone = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Call]:
        for stretch in self._stretches:
            yield from stretch.calls

    def add(self, owner: CallOwner, calls: Sequence[Call], *, first: bool = False) -> None:
        """Let calls of one owner wait in their order, behind or before the others."""
        if not calls:
            return
        stretches, self._size = self._stretches, self._size + len(calls)
        neighbour = stretches[0 if first else -1] if stretches else None
        if neighbour is None or neighbour.owner is not owner or not neighbour.calls:
            stretch = _Stretch(owner, calls)
            (stretches.appendleft if first else stretches.append)(stretch)
            self._of.setdefault(owner, []).append(stretch)
        elif first:
            neighbour.calls.extendleft(reversed(calls))
        else:
            neighbour.calls.extend(calls)

    def take(self) -> Call | None:
        """Take the next call; None: nothing waits."""
        stretches = self._stretches
        while stretches:
            stretch = stretches[0]
            calls = stretch.calls
            if not calls:
                stretches.popleft()
                self._gone -= 1
                continue
            call = calls.popleft()
            self._size -= 1
            self.since_s = stretch.since_s
            if not calls:
                self._over(stretches.popleft())
            return call
        return None

    def take_best(self, rank: Callable[[Call], tuple[float, ...]]) -> Call | None:
        """Take the lowest-ranked of the first thousand calls; None: nothing waits."""
        call = min(islice(self, _LOOKED_AT), key=rank, default=None)
        if call is not None:
            stretch = next(stretch for stretch in self._stretches if call in stretch.calls)
            stretch.calls.remove(call)
            self._size -= 1
            self.since_s = stretch.since_s
            if not stretch.calls:
                self._stretches.remove(stretch)
                self._over(stretch)
        return call

    def forget(self, owner: CallOwner) -> None:
        """Drop the calls of an owner."""
        for stretch in self._of.pop(owner, ()):
            self._size -= len(stretch.calls)
            stretch.calls.clear()
            self._gone += 1
        if self._gone > _MOST_GONE and self._gone > len(self._stretches) // 2:
            self._stretches, self._gone = deque(stretch for stretch in self._stretches if stretch.calls), 0

    def take_all(self) -> list[Call]:
        """Take every call."""
        calls = list(self)
        self._stretches.clear()
        self._of.clear()
        self._size = self._gone = 0
        return calls

    def sort(self, rank: Callable[[Call], tuple[float, ...]]) -> None:
        """Sort the calls by rank, lowest first; the sort is stable."""
        for call in sorted(self.take_all(), key=rank):
            self.add(call.owner, [call])

    def _over(self, stretch: _Stretch) -> None:
        own = self._of[stretch.owner]
        if len(own) == 1:
            del self._of[stretch.owner]
        else:
            own.remove(stretch)


class ClassQueue:
    """The calls of one class.

    Attributes:
        weight: The class's part while all want more than there is.
        pace: How many of its calls start a second.
        kinds: Its queues.
    """

    def __init__(self, traffic: TrafficClass, weight: float) -> None:
        self.traffic = traffic
        self.weight = weight
        self.pace = Pace()
        self.kinds: dict[Kind, CallQueue] = {}
        self._sweep_from = _MOST_EMPTY

    def __len__(self) -> int:
        return sum(map(len, self.kinds.values()))

    def __iter__(self) -> Iterator[Call]:
        for queue in self.kinds.values():
            yield from queue

    def add(self, kind: Kind, queue: CallQueue) -> None:
        """Let calls of one more kind wait; kinds of which none wait any more are forgotten by and by."""
        if len(self.kinds) >= self._sweep_from:
            self.kinds = {kind: queue for kind, queue in self.kinds.items() if queue}
            self._sweep_from = max(_MOST_EMPTY, 2 * len(self.kinds))
        self.kinds[kind] = queue


class FairQueue:
    """The queues of one lane. ``len()`` is the number of calls in them.

    Args:
        weight_of: Returns the weight of a class, above 0.
    """

    def __init__(self, weight_of: Callable[[TrafficClass], float]) -> None:
        self._weight_of = weight_of
        self._classes: dict[TrafficClass, ClassQueue] = {}
        # The limiter holds on to the queue of a kind for as long as it knows it; so both always speak of the same one.
        self._kinds: WeakValueDictionary[tuple[TrafficClass, Kind], CallQueue] = WeakValueDictionary()

    def __len__(self) -> int:
        return sum(map(len, self._classes.values()))

    def of_class(self, traffic: TrafficClass) -> ClassQueue:
        """Return the queue of a class."""
        found = self._classes.get(traffic)
        if found is None:
            found = self._classes[traffic] = ClassQueue(traffic, self._weight_of(traffic))
        return found

    def of_kind(self, traffic: TrafficClass, kind: Kind) -> CallQueue:
        """Return the queue of a kind of calls."""
        of_class = self.of_class(traffic)
        queue = of_class.kinds.get(kind)
        if queue is None:
            queue = self._kinds.get((traffic, kind))
            if queue is None:
                queue = self._kinds[traffic, kind] = CallQueue(traffic, kind)
            of_class.add(kind, queue)
        return queue

    def classes(self) -> list[ClassQueue]:
        """Return every class's queue."""
        return list(self._classes.values())

    def waiting(self) -> list[CallQueue]:
        """Return the queues in which calls wait."""
        return [queue for of_class in self._classes.values() for queue in of_class.kinds.values() if queue]

    def waiting_classes(self) -> Iterator[TrafficClass]:
        """Yield the classes of which calls wait."""
        return (traffic for traffic, of_class in self._classes.items() if len(of_class))

    def drop(self, traffic: TrafficClass) -> None:
        """Forget a class, if nothing of it waits."""
        found = self._classes.get(traffic)
        if found is not None and not len(found):
            del self._classes[traffic]

    def forget(self, owner: CallOwner) -> None:
        """Drop the calls of an owner."""
        for queue in self.of_class(owner.traffic).kinds.values():
            queue.forget(owner)

    def share(self, traffic: TrafficClass) -> float:
        """Return the part of what there is that a class gets if it wants it, while the others want theirs."""
        own = self.of_class(traffic)
        others = sum(other.weight for other in self._classes.values() if other is not own and len(other))
        return own.weight / (own.weight + others)
