"""Runs the ledger's scripts on a Redis connection and translates its failures."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Sequence
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.commands.core import AsyncScript
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, OutOfMemoryError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from callmill.config.lua_script import Call, LuaScript
from callmill.config.redis_safety import remedy
from callmill.errors import CorruptBatchError, OutsideError, RedisFullError, RedisUnavailableError
from callmill.jobs.formats import newer_batch
from callmill.ledger.keys import BARRIER

_NEWER_FORMAT = re.compile(r"NEWERFORMAT (\d+) (\S+)")
"""What ``batch.lua`` answers."""

_STRANGE_DATA = re.compile(r"user_script:\d+: attempt to|is not an? (?:integer|valid float|float)|WRONGTYPE")
"""What Redis says of a script that met something else than what any script writes."""

REPLICATED_WITHIN_MS = 2000
"""How long replicas may take; what they do not have by then is said again."""


class LedgerSession:
    """One process's access to the ledger on one event loop.

    Args:
        redis: A client of the primary.
        wait_replicas: Replicas that must have what counts for good, before it counts: a submit, a word that steers a
            batch, an outcome that is recorded or read. 0: the primary alone decides.
    """

    def __init__(self, redis: Redis, *, wait_replicas: int = 0) -> None:
        self.redis = redis
        self._wait_replicas = wait_replicas
        self._scripts: dict[LuaScript[Any, Any], AsyncScript] = {}

    async def run(self, call: Call) -> Any:
        """Run a script and return its answer.

        Raises:
            UnknownFormatError: It is about a batch of a newer format; nothing was read or written.
            CorruptBatchError: It met what nobody's script writes.
            RedisFullError: Its memory is full; the script did not run.
            RedisUnavailableError: Redis cannot be reached, or it refused; whether the script ran is unknown.
        """
        return await self.answer(self._registered(call.script)(keys=call.keys, args=call.arguments))

    async def run_lasting(self, call: Call) -> Any:
        """Run a script, which must be safe to repeat, and return its answer once replicas have what it wrote.

        Raises:
            UnknownFormatError: It is about a batch of a newer format; nothing was read or written.
            RedisFullError: Its memory is full; the script did not run.
            RedisUnavailableError: Redis cannot be reached, or it refused, or too few replicas have it in time: whether
                it will last is unknown.
        """
        if not self._wait_replicas:
            return await self.run(call)
        (answer,) = await self.run_many([call], lasting=True)
        if isinstance(answer, OutsideError):
            raise answer
        return answer

    async def run_many(self, calls: Sequence[Call], *, lasting: bool = False) -> list[Any]:
        """Run scripts in one round trip; where Redis refused one, its error stands in its place.

        ``lasting``: return once replicas have what it wrote.

        Raises:
            RedisUnavailableError: Redis cannot be reached, or too few replicas have it in time; which runs happened is
                unknown.
        """
        answers = await self._evaluate(calls, lasting=lasting)
        if any(isinstance(answer, NoScriptError) for answer in answers):  # a new or restarted server
            for script in {call.script for call in calls}:
                await self.answer(self.redis.script_load(script.text))
            answers = await self._evaluate(calls, lasting=lasting)
        return [refused(answer) if isinstance(answer, RedisError) else answer for answer in answers]

    async def read_lasting(self, *command: Any) -> Any:
        """Read, and return the answer once replicas have everything that it shows.

        Raises:
            RedisUnavailableError: Redis cannot be reached, or too few replicas have it in time.
        """
        pipeline = self.redis.pipeline(transaction=False)
        pipeline.execute_command(*command)
        (answer,) = await self._all(pipeline, lasting=True)
        if isinstance(answer, RedisError):
            raise refused(answer)
        return answer

    async def _evaluate(self, calls: Sequence[Call], *, lasting: bool) -> list[Any]:
        pipeline = self.redis.pipeline(transaction=False)
        for script, keys, arguments in calls:
            pipeline.execute_command("EVALSHA", self._registered(script).sha, len(keys), *keys, *arguments)
        return await self._all(pipeline, lasting=lasting)

    async def _all(self, pipeline: Pipeline, *, lasting: bool) -> list[Any]:
        waits = lasting and self._wait_replicas > 0
        if waits:
            # WAIT waits for what its own connection wrote last. A repeated script writes nothing, so that a fresh
            # connection would not wait at all, for what an earlier one wrote: hence something written in any case. To
            # publish is to write for replicas, yet neither a full Redis nor one without replicas refuses it.
            pipeline.publish(BARRIER, b"")
            pipeline.wait(self._wait_replicas, REPLICATED_WITHIN_MS)
        answers: list[Any] = await self.answer(pipeline.execute(raise_on_error=False))
        if not waits:
            return answers
        *answers, _, reached = answers
        if isinstance(reached, RedisError):
            raise refused(reached) from reached
        if reached < self._wait_replicas:
            raise RedisUnavailableError(
                f"{reached} of {self._wait_replicas} replicas have it after {REPLICATED_WITHIN_MS / 1000:g} s; "
                "see that they run, or lower CALLMILL_WAIT_REPLICAS"
            )
        return answers

    def _registered(self, script: LuaScript[Any, Any]) -> AsyncScript:
        registered = self._scripts.get(script)
        if registered is None:
            registered = self._scripts[script] = self.redis.register_script(script.text)
        return registered

    async def answer(self, pending: Awaitable[Any] | Any) -> Any:
        """Await an answer of Redis.

        Raises:
            UnknownFormatError: A script met a batch of a newer format.
            RedisUnavailableError: Redis cannot be reached, or it refused.
        """
        task = asyncio.current_task()
        cancelled = task.cancelling() if task is not None else 0
        try:
            found = await pending
        except (RedisConnectionError, RedisTimeoutError, OSError) as error:
            if task is not None and task.cancelling() > cancelled:  # redis-py may turn a cancellation into this error
                raise asyncio.CancelledError from error
            raise RedisUnavailableError(f"Redis cannot be reached: {_with_remedy(error)}") from error
        except RedisError as error:
            raise refused(error) from error
        if task is not None and task.cancelling() > cancelled:  # redis-py may also swallow it
            raise asyncio.CancelledError
        return found


def refused(error: RedisError) -> OutsideError:
    """Return what a refusal of Redis, or of a script, means."""
    if newer := _NEWER_FORMAT.match(str(error)):
        return newer_batch(newer[2], int(newer[1]))
    # Redis 6 tells of a script that met it under another code.
    if isinstance(error, OutOfMemoryError) or "command not allowed when used memory" in str(error):
        return RedisFullError(f"Redis refused, its memory is full: {error}")
    if str(error).startswith("MISCONF"):
        return RedisUnavailableError(
            f"Redis cannot write to its disk, and takes nothing: free space there, and it goes on: {error}"
        )
    if type(error) is ResponseError and _STRANGE_DATA.search(str(error)):
        return CorruptBatchError(f"what Redis holds of the batch is not what was written: {error}")
    return RedisUnavailableError(f"Redis refused: {_with_remedy(error)}")


def _with_remedy(error: Exception) -> str:
    mend = remedy(error)
    return f"{error}; {mend}" if mend else str(error)
