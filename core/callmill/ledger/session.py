"""Runs the ledger's scripts on a Redis connection and translates its failures."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Sequence
from typing import Any

from redis.asyncio import Redis
from redis.commands.core import AsyncScript
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, OutOfMemoryError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from callmill.config.redis_safety import remedy
from callmill.errors import OutsideError, RedisFullError, RedisUnavailableError
from callmill.jobs.formats import newer_batch
from callmill.ledger.scripts import script

Argument = str | bytes | int

_NEWER_FORMAT = re.compile(r"NEWERFORMAT (\d+) (\S+)")
"""What ``batch.lua`` answers."""


class LedgerSession:
    """One process's access to the ledger on one event loop."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self._scripts: dict[str, AsyncScript] = {}

    async def run(self, name: str, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """Run a script and return its answer.

        Raises:
            UnknownFormatError: It is about a batch of a newer format; nothing was read or written.
            RedisFullError: Its memory is full; the script did not run.
            RedisUnavailableError: Redis cannot be reached, or it refused; whether the script ran is unknown.
        """
        return await self.answer(self._registered(name)(keys=keys, args=arguments))

    async def run_many(self, name: str, calls: Sequence[tuple[Sequence[str], Sequence[Argument]]]) -> list[Any]:
        """Run a script several times in one round trip; where Redis refused one, its error stands in its place.

        Raises:
            RedisUnavailableError: Redis cannot be reached; which runs happened is unknown.
        """
        registered = self._registered(name)
        answers = await self._evaluate(registered.sha, calls)
        if any(isinstance(answer, NoScriptError) for answer in answers):  # a new or restarted server
            await self.answer(self.redis.script_load(registered.script))
            answers = await self._evaluate(registered.sha, calls)
        return [refused(answer) if isinstance(answer, RedisError) else answer for answer in answers]

    async def _evaluate(self, sha: str, calls: Sequence[tuple[Sequence[str], Sequence[Argument]]]) -> list[Any]:
        pipeline = self.redis.pipeline(transaction=False)
        for keys, arguments in calls:
            pipeline.execute_command("EVALSHA", sha, len(keys), *keys, *arguments)
        answers: list[Any] = await self.answer(pipeline.execute(raise_on_error=False))
        return answers

    def _registered(self, name: str) -> AsyncScript:
        registered = self._scripts.get(name)
        if registered is None:
            registered = self._scripts[name] = self.redis.register_script(script(name))
        return registered

    async def answer(self, pending: Awaitable[Any] | Any) -> Any:
        """Await an answer of Redis.

        Raises:
            UnknownFormatError: A script met a batch of a newer format.
            RedisUnavailableError: Redis cannot be reached, or it refused.
        """
        try:
            return await pending
        except (RedisConnectionError, RedisTimeoutError, OSError) as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # redis-py may turn the one into the other
                raise asyncio.CancelledError from error
            raise RedisUnavailableError(f"Redis cannot be reached: {_with_remedy(error)}") from error
        except RedisError as error:
            raise refused(error) from error


def refused(error: RedisError) -> OutsideError:
    """Return what a refusal of Redis, or of a script, means."""
    if newer := _NEWER_FORMAT.match(str(error)):
        return newer_batch(newer[2], int(newer[1]))
    # Redis 6 tells of a script that met it under another code.
    if isinstance(error, OutOfMemoryError) or "command not allowed when used memory" in str(error):
        return RedisFullError(f"Redis refused, its memory is full: {error}")
    return RedisUnavailableError(f"Redis refused: {_with_remedy(error)}")


def _with_remedy(error: Exception) -> str:
    mend = remedy(error)
    return f"{error}; {mend}" if mend else str(error)
