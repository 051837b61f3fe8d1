"""Runs the ledger's scripts on a Redis connection and translates its failures."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any

from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from callmill.errors import RedisUnavailableError
from callmill.ledger.scripts import script

Argument = str | bytes | int


class LedgerSession:
    """One process's access to the ledger on one event loop."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self._scripts: dict[str, AsyncScript] = {}

    async def run(self, name: str, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """Run a script and return its answer.

        Raises:
            RedisUnavailableError: Redis cannot be reached, or it refused; whether the script ran is unknown.
        """
        registered = self._scripts.get(name)
        if registered is None:
            registered = self._scripts[name] = self.redis.register_script(script(name))
        return await self.answer(registered(keys=keys, args=arguments))

    async def answer(self, pending: Awaitable[Any] | Any) -> Any:
        """Await an answer of Redis.

        Raises:
            RedisUnavailableError: Redis cannot be reached, or it refused.
        """
        try:
            return await pending
        except (RedisConnectionError, RedisTimeoutError, OSError) as error:
            raise RedisUnavailableError(f"Redis cannot be reached: {error}") from error
        except RedisError as error:
            raise RedisUnavailableError(f"Redis refused: {error}") from error
