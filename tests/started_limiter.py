"""A limiter that runs in the test's own process."""

from __future__ import annotations

from collections.abc import AsyncIterator
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
