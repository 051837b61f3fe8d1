"""AnswerRoom: how much memory large answers may take of a process until they are recorded.

Small answers need no leave: there are at most as many as calls in flight. A large one is read piece by piece, and where
there is no room for the next piece, its reading waits; so its server does. An API has half of the room at most, and its
oldest answer is always read on, unless what was read already waits for Redis. Losing an answer is worse than exceeding
this: when half of the time is over that one may wait, as much again is there for it, unless memory is short.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

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
    """One large answer while it is read.

    Attributes:
        waited: Whether it ever waited for room.
    """

    __slots__ = ("_api", "_bytes", "_is_late", "waited")

    def __init__(self, api: AnswersOfApi) -> None:
        self.waited = False
        self._is_late = False
        self._api = api
        self._bytes = 0
        api.readings[self] = None

    def fits(self, size_bytes: int) -> bool:
        """Say whether there is room for so many bytes more."""
        api, room = self._api, self._api.room
        if next(iter(api.readings)) is self and room.unrecorded_bytes < room.most_bytes:
            return True
        if room.tight:
            return False
        in_all = room.unrecorded_bytes + room.reading_bytes + size_bytes
        if self._is_late:
            return in_all <= 2 * room.most_bytes
        return in_all <= room.most_bytes and api.bytes + size_bytes <= room.most_bytes // 2

    async def room_for(self, size_bytes: int, within_s: float | None = None) -> None:
        """Wait until there is room for so many bytes more; from half of ``within_s`` on, this answer may exceed it.

        Raises:
            TimeoutError: ``within_s`` seconds are over.
        """
        if self.fits(size_bytes):
            return
        self.waited = True
        self._api.waiting += 1
        hurry = None if within_s is None else asyncio.get_running_loop().call_later(within_s / 2, self._hurry)
        try:
            async with asyncio.timeout(within_s):
                while not self.fits(size_bytes):
                    await self._api.room.changed()
        finally:
            self._api.waiting -= 1
            if hurry is not None:
                hurry.cancel()

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

    def _hurry(self) -> None:
        self._is_late = True
        self._api.room.wake()


class ReadingInThread:
    """One large answer that is read in a thread of its own; while it waits for room, its call's time stands still."""

    def __init__(
        self,
        api: AnswersOfApi,
        loop: asyncio.AbstractEventLoop,
        gave_up: Callable[[], bool],
        call_time: asyncio.Timeout,
    ) -> None:
        self._api = api
        self._loop = loop
        self._call_time = call_time
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
        if not self._reading.fits(size_bytes):
            with _standing_still(self._call_time):
                await self._reading.room_for(size_bytes)


@contextmanager
def _standing_still(time: asyncio.Timeout) -> Iterator[None]:
    """Let a time-out's time stand still, unless it is over meanwhile."""
    now, ends_at_s = asyncio.get_running_loop().time, time.when()
    began_s = now()
    with suppress(RuntimeError):
        time.reschedule(None)
    try:
        yield
    finally:
        with suppress(RuntimeError):
            time.reschedule(None if ends_at_s is None else ends_at_s + now() - began_s)
