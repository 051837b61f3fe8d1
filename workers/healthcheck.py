"""Health check of a worker's container: exit code 0 while the worker in it reports to Redis.

A worker reports every second and is forgotten 5 s after its last report. Without Redis nothing can be said: a worker
waits for it by itself, so that is no reason to replace the container.
"""

from __future__ import annotations

import asyncio
import socket
import sys

from callmill.config.embedded_server import redis_url
from callmill.config.redis_connections import connect
from callmill.config.settings import load_settings
from callmill.errors import RedisUnavailableError
from callmill.ledger import LedgerSession
from callmill.ledger.fleet import Fleet


async def worker_reports() -> bool:
    """Say whether a worker on this host reported within the last seconds."""
    async with connect(redis_url(load_settings())) as redis:
        try:
            return any(worker.host == socket.gethostname() for worker in await Fleet(LedgerSession(redis)).workers())
        except RedisUnavailableError:
            return True


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(worker_reports()) else 1)
