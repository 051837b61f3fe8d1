"""Follows everything until somebody ends it; a Redis that goes away does not."""

from __future__ import annotations

import asyncio
import signal

from msgspec.structs import replace

from callmill.cli.fleet_displays import FleetDisplay
from callmill.cli.fleet_now import FleetNow, read_fleet
from callmill.cli.overview_session import open_overview
from callmill.config.cancelling import end_tasks
from callmill.errors import RedisUnavailableError, ServerNotFoundError
from callmill.overview.reader import Overview

_EVERY_S = 1.0
_PATIENCE = 3
"""A Redis that has not answered by then, in looks, counts as away."""

_BATCHES = 50


async def watch_fleet(display: FleetDisplay) -> None:
    """Show everything each second until SIGINT or SIGTERM.

    Raises:
        RedisUnavailableError: Redis cannot be reached at the start; if that happens later, it is shown.
        ServerNotFoundError: There is no Redis at the start.
    """
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGWINCH, display.resized)
    tasks = [asyncio.create_task(_follow(display)), asyncio.create_task(_wait(stop))]
    try:
        with display:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()
    finally:
        await end_tasks(tasks)


async def _wait(stop: asyncio.Event) -> None:
    await stop.wait()


async def _follow(display: FleetDisplay) -> None:
    now: FleetNow | None = None
    while True:
        try:
            # Opened anew after each failure: an embedded server may come back at another address.
            async with open_overview() as overview:
                while True:
                    now = await _read(overview, display, now)
                    display.show(now)
                    await asyncio.sleep(_EVERY_S)
        except (RedisUnavailableError, ServerNotFoundError) as error:
            if now is None:
                raise
            now = replace(now, away=str(error))
            display.show(now)
        await asyncio.sleep(_EVERY_S)


async def _read(overview: Overview, display: FleetDisplay, before: FleetNow | None) -> FleetNow:
    """Read everything; while that takes long, what was read before is shown on."""
    reading = asyncio.create_task(read_fleet(overview, _BATCHES))
    try:
        for _ in range(_PATIENCE):
            if (await asyncio.wait([reading], timeout=_EVERY_S))[0]:
                return reading.result()
            if before is not None:
                display.show(before)
    finally:
        await end_tasks([reading])
    raise RedisUnavailableError(f"Redis does not answer within {_PATIENCE * _EVERY_S:g} s")
