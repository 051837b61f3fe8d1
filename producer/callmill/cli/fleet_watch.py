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
_PATIENCE_S = 3.0
"""A Redis that does not answer for so long counts as away."""

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
                    now = await _read(overview)
                    display.show(now)
                    await asyncio.sleep(_EVERY_S)
        except (RedisUnavailableError, ServerNotFoundError) as error:
            if now is None:
                raise
            display.show(replace(now, away=str(error)))
        await asyncio.sleep(_EVERY_S)


async def _read(overview: Overview) -> FleetNow:
    try:
        async with asyncio.timeout(_PATIENCE_S):
            return await read_fleet(overview, _BATCHES)
    except TimeoutError:
        raise RedisUnavailableError(f"Redis does not answer within {_PATIENCE_S:g} s") from None
