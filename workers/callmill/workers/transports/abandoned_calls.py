"""AbandonedCalls: pyreqwest calls that outlive the task that made them.

A pyreqwest call cannot be cancelled: the task gets its CancelledError, yet the exchange goes on until its time is over,
and where the answer comes at that very moment the cancellation itself is lost. So a cancellation never gets as far as
pyreqwest: the task ends at once, and the exchange is awaited in the background, still counted as a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Generator
from types import coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Cancelled(asyncio.CancelledError, Generic[T]):
    """The task was cancelled; ``rest`` still runs.

    Attributes:
        rest: The exchange, to be awaited by somebody else.
    """

    def __init__(self, rest: Coroutine[Any, Any, T]) -> None:
        super().__init__()
        self.rest = rest


@coroutine
def unhurt(exchange: Coroutine[Any, Any, T]) -> Generator[Any, None, T]:
    """Await ``exchange`` without passing a cancellation on to it.

    Raises:
        Cancelled: The task was cancelled.
    """
    while True:
        try:
            waits_for = exchange.send(None)
        except StopIteration as done:
            result: T = done.value
            return result
        try:
            yield waits_for
        except asyncio.CancelledError as error:
            raise Cancelled(exchange) from error


class AbandonedCalls:
    """Background tasks for the exchanges whose task was cancelled."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def adopt(self, rest: Coroutine[Any, Any, object], ended: Callable[[], None]) -> None:
        """Await ``rest``, whatever comes of it, then call ``ended``."""
        task = asyncio.get_running_loop().create_task(_await_quietly(rest, ended))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _await_quietly(rest: Coroutine[Any, Any, object], ended: Callable[[], None]) -> None:
    try:
        # Nobody is left to be told; the exchange ends by its own time-out at the latest.
        with contextlib.suppress(Exception):
            await unhurt(rest)
    finally:
        ended()
