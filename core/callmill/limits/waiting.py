"""Calls that wait for slots: how the limiter sees them, and those of programs that ask for one slot at a time."""

from __future__ import annotations

import asyncio
import sys
from collections import OrderedDict
from itertools import islice
from typing import Protocol

from callmill.jobs.traffic import TrafficClass
from callmill.limits.cost import Cost
from callmill.limits.slots import Slot


class WaitingCalls(Protocol):
    """The calls of one class, model and weight that wait: counted, never walked but for the next few."""

    @property
    def wanting(self) -> int:
        """How many of them would start now if they had a slot."""
        ...

    @property
    def any(self) -> bool:
        """Whether there are any, though they would not start now."""
        ...

    def costs(self, skip: int, count: int) -> list[Cost]:
        """What the next calls after so many will cost, up to ``count``; asked only where tokens are counted."""
        ...

    def start(self, slot: Slot) -> bool:
        """Start the next call in this slot; False: there is none."""
        ...


class Caller(Protocol):
    """Who makes the calls that a limiter lets start."""

    def room(self) -> int:
        """How many more calls may start now."""
        ...

    def places(self) -> int:
        """How many more calls may be under way: ``room`` where nothing but places holds calls back."""
        ...

    def calls(self, traffic: TrafficClass, model: str, weight: int) -> WaitingCalls:
        """Where the calls of a kind wait, which count as so many requests each; asked once for each kind that comes."""
        ...

    def adopt(self) -> None:
        """Other limits hold."""
        ...


class Acquirers:
    """Those who wait for ``Limiter.acquire``, first come first served."""

    def __init__(self) -> None:
        self._queue: OrderedDict[asyncio.Future[Slot], Cost] = OrderedDict()

    @property
    def wanting(self) -> int:
        """How many wait."""
        return len(self._queue)

    @property
    def any(self) -> bool:
        """See the port."""
        return bool(self._queue)

    def costs(self, skip: int, count: int) -> list[Cost]:
        """See the port."""
        return list(islice(self._queue.values(), skip, skip + count))

    def start(self, slot: Slot) -> bool:
        """Give the slot to who waits longest."""
        while self._queue:
            future, cost = self._queue.popitem(last=False)
            if not future.done():  # else cancelled just now
                slot.charge(cost)
                future.set_result(slot)
                return True
        return False

    def enter(self, cost: Cost, *, first: bool = False) -> asyncio.Future[Slot]:
        """Wait; ``first``: before all others, because a slot was lost."""
        future: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        self._queue[future] = cost
        if first:
            self._queue.move_to_end(future, last=False)
        return future

    def leave(self, future: asyncio.Future[Slot]) -> None:
        """Wait no more."""
        self._queue.pop(future, None)

    def cancel(self) -> None:
        """Cancel everyone."""
        while self._queue:
            self._queue.popitem()[0].cancel()


class Programs:
    """The caller of a limiter whose user acquires slots: how many calls are under way is the user's affair."""

    def room(self) -> int:
        """No bound."""
        return sys.maxsize

    def places(self) -> int:
        """No bound."""
        return sys.maxsize

    def calls(self, traffic: TrafficClass, model: str, weight: int) -> Acquirers:  # noqa: ARG002 - the port's signature
        """A queue of their own for each kind of call."""
        return Acquirers()

    def adopt(self) -> None:
        """Nothing changes."""
