"""EventLoopThread: one event loop in a thread of its own, on which the synchronous face runs the asynchronous core."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class EventLoopThread:
    """An event loop that other threads run coroutines on. One a process, shared; made anew after a fork."""

    _shared: EventLoopThread | None = None
    _lock = threading.Lock()

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="callmill-client", daemon=True).start()

    @classmethod
    def shared(cls) -> EventLoopThread:
        """Return this process's loop thread, started when there is none yet."""
        with cls._lock:
            if cls._shared is None:
                cls._shared = cls()
            return cls._shared

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there and return its result here; an interrupt here cancels it there."""
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """Yield the items of an asynchronous iterator here; closing the generator closes the iterator."""
        end = object()

        async def following() -> Any:
            return await anext(items, end)

        try:
            while (item := self.run(following())) is not end:
                yield item
        finally:
            if aclose := getattr(items, "aclose", None):
                self.run(aclose())


def _forget_after_fork() -> None:
    # The child has no such thread, and the parent may have held the lock.
    EventLoopThread._shared = None  # noqa: SLF001
    EventLoopThread._lock = threading.Lock()  # noqa: SLF001


os.register_at_fork(after_in_child=_forget_after_fork)
