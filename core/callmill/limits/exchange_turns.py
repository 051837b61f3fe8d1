"""ExchangeTurns: so many exchanges with Redis at once; of those that wait, each class has its turn.

Thousands of models want thousands of exchanges. All at once they would find no connection; one behind the other, those
of a class with one model would wait for all of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

MOST_EXCHANGES = 16
"""Enough to keep Redis and a process busy, and few enough that each is over within milliseconds."""


class ExchangeTurns:
    """Belongs to one event loop."""

    def __init__(self, most: int = MOST_EXCHANGES) -> None:
        self._free = most
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def turn(self, traffic: str) -> AsyncIterator[None]:
        """Wait until an exchange for a class may begin; it is over when the block ends."""
        if self._free > 0:
            self._free -= 1
        else:
            await self._wait(traffic)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, traffic: str) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(traffic, deque()).append(future)
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        """Let the next one begin, of the class whose last turn is longest ago."""
        while self._waiting:
            traffic = next(iter(self._waiting))
            line = self._waiting.pop(traffic)
            future = line.popleft()
            if line:
                self._waiting[traffic] = line
            if not future.done():  # else it waits no more
                future.set_result(None)
                return
        self._free += 1
