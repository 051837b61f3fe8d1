"""BlockingLimiter: a limiter for programs that use threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, contextmanager
from types import TracebackType
from typing import Any, TypeVar

from callmill.limits.limiter import Limiter
from callmill.limits.opening import open_limiter
from callmill.limits.slots import Slot
from callmill.limits.status import LimiterStatus

T = TypeVar("T")


class BlockingLimiter(AbstractContextManager["BlockingLimiter"]):
    """A running limiter that any number of threads of a process share; see ``open_limiter`` for what it takes.

    Raises:
        UsageError: A limit or an enforcer is none.
        ConfigurationError: The URL is none of Redis.
    """

    def __init__(
        self,
        url: str,
        name: str,
        limits: Sequence[str],
        *,
        enforcer: str = "unknown",
        burst: int = 1,
        quantum: float | None = None,
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"callmill-limiter-{name}", daemon=True)
        self._thread.start()
        self._stack = AsyncExitStack()
        opened = open_limiter(url, name, limits, enforcer=enforcer, burst=burst, quantum=quantum)
        try:
            self._limiter: Limiter = self._run(self._stack.enter_async_context(opened))
        except BaseException:
            self._stop()
            raise

    def acquire(
        self, tokens: int = 0, *, output_tokens: int = 0, weight: int = 1, timeout: float | None = None
    ) -> Slot:
        """Wait for the start time of a call and return its slot, which has to be settled.

        Args:
            tokens: What the call is reserved to cost, its answer included.
            output_tokens: The part of it that is the answer's.
            weight: How many requests it counts as.
            timeout: Seconds to wait at most; None: as long as it takes.

        Raises:
            TimeoutError: No slot was due in time; nothing was taken.
        """
        return self._run(self._acquire(tokens, output_tokens, weight, timeout))

    @contextmanager
    def slot(
        self, tokens: int = 0, *, output_tokens: int = 0, weight: int = 1, timeout: float | None = None
    ) -> Iterator[Slot]:
        """Make one call inside: wait for its slot, and settle it as reserved at the end unless that was done."""
        slot = self.acquire(tokens, output_tokens=output_tokens, weight=weight, timeout=timeout)
        try:
            yield slot
        finally:
            self.settle(slot, None)

    def settle(self, slot: Slot, tokens_used: int | None, output_tokens_used: int | None = None) -> None:
        """The call is over: charge what it really cost, where known, and free its permit; repeats are ignored."""
        self._loop.call_soon_threadsafe(self._limiter.settle, slot, tokens_used, output_tokens_used)

    def refused(self, slot: Slot, after_s: float | None, reason: str) -> None:
        """The API refused a call because of its limits: pause the fleet, and learn from it."""
        self._loop.call_soon_threadsafe(self._limiter.refused, slot, after_s, reason)

    def pause(self, seconds: float, reason: str) -> None:
        """Let no call start for ``seconds``, here at once and in the fleet within milliseconds."""
        self._run(self._limiter.pause(seconds, reason))

    def status(self) -> LimiterStatus:
        """What this limiter does now."""
        return self._run(self._status())

    def close(self) -> None:
        """Stop; who waits gets a cancellation, what is settled reaches Redis if it can. Idempotent."""
        if self._thread.is_alive():
            self._run(self._stack.aclose())
            self._stop()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    async def _acquire(self, tokens: int, output_tokens: int, weight: int, timeout_s: float | None) -> Slot:
        async with asyncio.timeout(timeout_s):
            return await self._limiter.acquire(tokens, output_tokens=output_tokens, weight=weight)

    async def _status(self) -> LimiterStatus:
        return self._limiter.status()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
