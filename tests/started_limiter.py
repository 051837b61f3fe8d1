"""A limiter that runs in the test's own process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from redis.asyncio import Redis

from callmill.limits import Limiter, LimitRules


@asynccontextmanager
async def started(
    url: str, limits: LimitRules, worker: str = "w", *, socket_timeout: float = 2
) -> AsyncIterator[Limiter]:
    """Start a limiter, and close it when the block ends."""
    async with Redis.from_url(url, socket_timeout=socket_timeout) as connection:
        limiter = Limiter(connection, "api", limits, worker=worker)
        await limiter.start()
        try:
            yield limiter
        finally:
            await limiter.aclose()


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that only the limiter knows."""
    while not condition():  # noqa: ASYNC110 - the limiter tells its state only to those who ask
        await asyncio.sleep(0.001)
