"""Ending tasks for good: a Redis client may swallow a cancellation that comes while it waits for an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

_AGAIN_S = 0.25


async def end_tasks(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel tasks, again every quarter of a second, until all are over; their errors are nobody's.

    Cancelled itself, it goes on first.
    """
    loop, cancelled = asyncio.get_running_loop(), None
    tasks, again_s = list(tasks), 0.0
    while running := [task for task in tasks if not task.done()]:
        if loop.time() >= again_s:
            again_s = loop.time() + _AGAIN_S
            for task in running:
                task.cancel()
        try:
            await asyncio.wait(running, timeout=again_s - loop.time())
        except asyncio.CancelledError as error:
            cancelled = error
    await asyncio.gather(*tasks, return_exceptions=True)  # their errors count as seen
    if cancelled is not None:
        raise cancelled


async def to_its_end(task: asyncio.Future[Any]) -> None:
    """Wait for what must not be left half done, however often that is cancelled; then be cancelled."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()
