"""EventLoopThread: one event loop in a thread of its own, on which the synchronous face runs the asynchronous core."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, ClassVar, TypeVar

from callmill.config.forks import in_child, notice_fork
from callmill.errors import UsageError

T = TypeVar("T")

_CLEAN_UP_S = 10.0
"""How long an interrupted caller waits for its coroutine to end: it may have to clean up."""


class EventLoopThread:
    """An event loop that other threads run coroutines on. One a process, shared; a forked child has its own."""

    _shared: EventLoopThread | None = None
    _lock = threading.Lock()
    _inherited: ClassVar[list[EventLoopThread]] = []
    """The parent's, in a child: kept, because collecting it would end, with complaints, what is under way there."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._cleaning: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="callmill-client", daemon=True)
        self._thread.start()

    @classmethod
    def shared(cls) -> EventLoopThread:
        """Return this process's loop thread, started when there is none yet."""
        notice_fork()
        with cls._lock:
            if cls._shared is None:
                cls._shared = cls()
            return cls._shared

    @classmethod
    def started(cls) -> EventLoopThread | None:
        """Return this process's loop thread; None if nothing has needed one yet."""
        notice_fork()
        return cls._shared

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there and return its result here; an interrupt here cancels it there and lets it clean up."""
        ended = threading.Event()
        task: Future[asyncio.Task[T]] = Future()

        def start() -> None:
            running = self._loop.create_task(coroutine)
            running.add_done_callback(lambda _: ended.set())
            task.set_result(running)

        self._loop.call_soon_threadsafe(start)
        try:
            ended.wait()
        except BaseException:
            self._loop.call_soon_threadsafe(lambda: task.done() and task.result().cancel())
            ended.wait(_CLEAN_UP_S)
            raise
        return task.result().result()

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """Yield the items of an asynchronous iterator here; closing the generator closes the iterator.

        Raises:
            UsageError: The iteration began before this process was forked.
        """
        end = object()

        async def following() -> Any:
            return await anext(items, end)

        async def close() -> None:
            if aclose := getattr(items, "aclose", None):
                await aclose()

        try:
            while True:
                if self._pid != os.getpid():
                    raise UsageError(
                        "this iteration began before the process was forked: start a new one in the child, "
                        "after the last outcome's cursor"
                    )
                if (item := self.run(following())) is end:
                    return
                yield item
        finally:
            self._clean_up(close)

    def _clean_up(self, clean_up: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run the clean-up of a generator, which Python may end in any thread, and when the process ends."""
        if self._pid != os.getpid() or sys.is_finalizing():  # the loop's thread is another process's, or has ended
            return
        if threading.current_thread() is self._thread:  # the collector ran here: to wait would be for oneself
            task = self._loop.create_task(clean_up())
            self._cleaning.add(task)
            task.add_done_callback(self._cleaning.discard)
        else:
            self.run(clean_up())

    @classmethod
    def leave_behind(cls) -> None:
        """Start a forked child without a loop thread and with a fresh lock."""
        if cls._shared is not None:
            cls._inherited.append(cls._shared)
        cls._shared = None
        cls._lock = threading.Lock()


in_child(EventLoopThread, lambda kept: kept.leave_behind())
