"""AnswerCache: one answer for all who ask within a second, read once."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from callmill.errors import RedisUnavailableError

_KEPT = 64


class AnswerCache:
    """Keeps answers, and failures to get them, for a moment; bounded in how many. For one event loop.

    Args:
        for_s: Seconds that an answer serves, from when it came.
        timeout_s: Seconds that reading one may take.
    """

    def __init__(self, *, for_s: float, timeout_s: float) -> None:
        self._for_s = for_s
        self._timeout_s = timeout_s
        self._reads: OrderedDict[str, _Read] = OrderedDict()

    async def get(self, name: str, read: Callable[[], Awaitable[bytes]]) -> bytes:
        """Return the answer of this name, read by whoever asks first.

        Raises:
            CallmillError: It could not be read, ``RedisUnavailableError`` where that took too long.
        """
        cached = self._reads.get(name)
        if cached is None or cached.is_old(self._for_s):
            cached = self._reads[name] = _Read(asyncio.ensure_future(self._timed(read)))
            self._reads.move_to_end(name)
            if len(self._reads) > _KEPT:
                self._reads.popitem(last=False)
        # Who goes away takes the answer from nobody else.
        return await asyncio.shield(cached.task)

    def clear(self) -> None:
        """Forget everything: something was changed, and whoever changed it wants to see that."""
        self._reads.clear()

    async def _timed(self, read: Callable[[], Awaitable[bytes]]) -> bytes:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await read()
        except TimeoutError as error:
            raise RedisUnavailableError(f"Redis did not answer within {self._timeout_s:g} s") from error


class _Read:
    def __init__(self, task: asyncio.Task[bytes]) -> None:
        self.task = task
        self._done_s: float | None = None
        task.add_done_callback(self._done)

    def is_old(self, after_s: float) -> bool:
        return self._done_s is not None and time.monotonic() - self._done_s > after_s

    def _done(self, task: asyncio.Task[bytes]) -> None:
        self._done_s = time.monotonic()
        if not task.cancelled():
            task.exception()  # seen: whoever asked may have gone away
