"""Asking: the runners of a lane that wait for a slot, by class, and how a class is heard when all runners are taken."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import cast

from callmill.limits import Slot
from callmill.workers.call import CallOwner
from callmill.workers.fair_queue import ClassLine, FairQueue


class Asking:
    """The runners of one lane that wait for a slot with a call in hand. ``len()`` is their number."""

    def __init__(self, queue: FairQueue) -> None:
        self._queue = queue
        self._count = 0
        self._giving_way: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return self._count

    async def wait(self, owner: CallOwner, line: ClassLine, slot: Awaitable[Slot]) -> Slot | None:
        """Wait for a slot for a call of this line; None: the runner that waits gives way to another class.

        Raises:
            asyncio.CancelledError: The owner gave its calls back, or the lane ends.
        """
        runner = cast("asyncio.Task[None]", asyncio.current_task())
        self._count += 1
        line.askers[runner] = owner
        try:
            return await slot
        except asyncio.CancelledError:
            if runner not in self._giving_way or runner.uncancel():
                raise
            return None
        finally:
            self._giving_way.discard(runner)
            self._count -= 1
            line.askers.pop(runner, None)

    def forget(self, owner: CallOwner) -> None:
        """Let nobody wait any more for the calls of an owner that gives them back: each would waste a slot."""
        for runner, asks_for in self._queue.line(owner.traffic).askers.items():
            if asks_for is owner:
                runner.cancel()

    def give_way(self) -> None:
        """Let nobody wait any more: the calls go elsewhere."""
        for line in self._queue.lines():
            runners, line.askers = list(line.askers), {}
            for runner in runners:
                self._giving_way.add(runner)
                runner.cancel()

    def make_heard(self) -> None:
        """Where a class has calls of which none asks, let a runner give way of the class that asks most."""
        if not self._queue.unheard:
            return
        askers = self._queue.loudest.askers
        if len(askers) > 1:
            runner, _ = askers.popitem()
            self._giving_way.add(runner)
            runner.cancel()
