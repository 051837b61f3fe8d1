"""Opens the overview for a command: the ledger's Redis, and the limiter's, which may be another server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from callmill.config.embedded_server import limiter_url, redis_url
from callmill.config.redis_connections import connect
from callmill.config.settings import load_settings
from callmill.ledger.session import LedgerSession
from callmill.overview.reader import Overview


@asynccontextmanager
async def open_overview() -> AsyncIterator[Overview]:
    """Open the overview of the Redis that is set, or of the embedded server that runs.

    Raises:
        ServerNotFoundError: There is neither.
        ConfigurationError: A setting is wrong.
    """
    settings = load_settings()
    async with connect(redis_url(settings)) as ledger, connect(limiter_url(settings)) as limiter:
        yield Overview(LedgerSession(ledger), limiter, watermark=settings.memory_watermark)
