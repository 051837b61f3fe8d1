"""ConnectionSlots: at most N exchanges at once, first come, first served."""

from __future__ import annotations

import asyncio
from collections import deque


class ConnectionSlots:
    """A semaphore whose uncontended path is two integer operations, for use on one event loop."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._drained: list[asyncio.Future[None]] = []
        self.taken = 0

    def take_now(self) -> bool:
        """Take a slot if one is free and nobody waits."""
        if self.taken >= self._size or self._waiting:
            return False
        self.taken += 1
        return True

    async def take(self) -> None:
        """Wait for a slot; a cancelled waiter passes on what it was handed."""
        if self.take_now():
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back()
            raise

    def give_back(self) -> None:
        """Return a slot, to the longest waiting if there is one."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.taken -= 1
        if not self.taken and self._drained:
            for waiter in self._drained:
                if not waiter.done():
                    waiter.set_result(None)
            self._drained.clear()

    async def drained(self) -> None:
        """Wait until no slot is taken."""
        if self.taken:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._drained.append(waiter)
            await waiter
