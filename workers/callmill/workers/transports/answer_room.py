"""AnswerRoom: how much memory large answers may take of a process until they are recorded.

Small answers need no leave: there are at most as many as calls in flight. A large one is read piece by piece, and where
there is no room for the next piece, its reading waits; so its server does. An API has half of the room at most, and its
oldest answer is always read on, unless what was read already waits for Redis.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_DEFAULT_BYTES = 1 << 30
_LOOK_EVERY_S = 0.1


class AnswerRoom:
    """The room for large answers in one process. Belongs to one event loop.

    Attributes:
        most_bytes: How large it is.
        tight: Memory is short: only the oldest answer of each API is read on.
        reading_bytes: What is taken by answers that are being read.
        unrecorded_bytes: What is taken by those that wait to be recorded.
    """

    def __init__(self, most_bytes: int = _DEFAULT_BYTES) -> None:
        self.most_bytes = most_bytes
        self.tight = False
        self.reading_bytes = 0
        self.unrecorded_bytes = 0
        self._waiters: list[asyncio.Future[None]] = []

    def unrecorded(self, size_bytes: int) -> None:
        """Take note how many bytes of answers wait to be recorded."""
        fewer, self.unrecorded_bytes = size_bytes < self.unrecorded_bytes, size_bytes
        if fewer:
            self.wake()

    def wake(self) -> None:
        """Let those who wait look again."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def changed(self) -> None:
        """Wait until there may be more room."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter


class AnswersOfApi:
    """The large answers of one API that are being read.

    Attributes:
        room: What it shares with the other APIs.
        bytes: What its answers have taken.
        readings: The answers, the oldest first.
        waiting: How many of them wait for room; meanwhile no further call of the API should start.
    """

    def __init__(self, room: AnswerRoom) -> None:
        self.waiting = 0
        self.room = room
        self.bytes = 0
        self.readings: dict[Reading, None] = {}

    def reading(self) -> Reading:
        """Begin to read a large answer."""
        return Reading(self)


class Reading:
    """One large answer while it is read."""

    __slots__ = ("_api", "_bytes")

    def __init__(self, api: AnswersOfApi) -> None:
        self._api = api
        self._bytes = 0
        api.readings[self] = None

    async def room_for(self, size_bytes: int) -> None:
        """Wait until there is room for so many bytes more."""
        api = self._api
        if self._fits(size_bytes):
            return
        api.waiting += 1
        try:
            while not self._fits(size_bytes):
                await api.room.changed()
        finally:
            api.waiting -= 1

    def grow(self, size_bytes: int) -> None:
        """Take note that so many bytes more were read."""
        api = self._api
        self._bytes += size_bytes
        api.bytes += size_bytes
        api.room.reading_bytes += size_bytes

    def end(self) -> None:
        """Give the room back."""
        api = self._api
        api.readings.pop(self, None)
        api.bytes -= self._bytes
        api.room.reading_bytes -= self._bytes
        self._bytes = 0
        api.room.wake()

    def _fits(self, size_bytes: int) -> bool:
        api, room = self._api, self._api.room
        if next(iter(api.readings)) is self:
            return room.unrecorded_bytes < room.most_bytes
        if room.tight:
            return False
        in_all = room.unrecorded_bytes + room.reading_bytes + size_bytes
        return in_all <= room.most_bytes and api.bytes + size_bytes <= room.most_bytes // 2


class ReadingInThread:
    """One large answer that is read in a thread of its own."""

    def __init__(self, api: AnswersOfApi, loop: asyncio.AbstractEventLoop, gave_up: Callable[[], bool]) -> None:
        self._api = api
        self._loop = loop
        self._gave_up = gave_up
        self._reading: Reading | None = None

    def grow(self, size_bytes: int) -> None:
        """Wait until there is room for so many bytes more.

        Raises:
            TimeoutError: The call was given up meanwhile.
        """
        growing = asyncio.run_coroutine_threadsafe(self._grow(size_bytes), self._loop)
        while True:
            try:
                growing.result(_LOOK_EVERY_S)
            except TimeoutError:
                if self._gave_up():
                    growing.cancel()
                    raise
            else:
                return

    def end(self) -> None:
        """Give the room back."""
        if self._reading is not None:
            self._loop.call_soon_threadsafe(self._reading.end)

    async def _grow(self, size_bytes: int) -> None:
        if self._reading is None:
            self._reading = self._api.reading()
        self._reading.grow(size_bytes)
        await self._reading.room_for(size_bytes)
