"""Processes of a benchmark that begin at the same moment, however long each took to start."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from time import monotonic, sleep
from typing import Any

from child import run_script
from redis.asyncio import Redis

from callmill.config.redis_connections import connect_blocking

_READY_KEY, _BEGIN_KEY = "together:ready", "together:begin"
_TIMEOUT_S = 60.0
_LOOK_EVERY_S = 0.05
_BEGIN_IN_S = 0.5


def run_together(module: str, arguments: Sequence[object], redis_url: str) -> list[Any]:
    """Run a module once for each argument, all at the same time, and return the JSON that each prints.

    Raises:
        RuntimeError: One of them failed, or was not ready in time.
    """
    with ThreadPoolExecutor(len(arguments)) as threads, closing(connect_blocking(redis_url)) as redis:
        processes = [threads.submit(run_script, module, argument) for argument in arguments]
        deadline = monotonic() + _TIMEOUT_S
        while int(redis.get(_READY_KEY) or 0) < len(arguments) and not any(process.done() for process in processes):
            if monotonic() > deadline:
                raise RuntimeError(f"not every {module} was ready within {_TIMEOUT_S:g} s")
            sleep(_LOOK_EVERY_S)
        redis.set(_BEGIN_KEY, monotonic() + _BEGIN_IN_S)
        return [process.result() for process in processes]


async def begin_together(redis: Redis) -> float:
    """Say that this process is ready, wait for all others, and return the moment at which all begin.

    It is a time of the monotonic clock: all processes of a machine share it.
    """
    await redis.incr(_READY_KEY)
    deadline = monotonic() + _TIMEOUT_S
    while monotonic() < deadline:
        if (begin := await redis.get(_BEGIN_KEY)) is not None:
            await asyncio.sleep(max(0.0, float(begin) - monotonic()))
            return float(begin)
        await asyncio.sleep(_LOOK_EVERY_S)
    raise RuntimeError("the others were not ready in time")
