"""The limiter's exchanges with Redis: every command under a time limit, every failure one error."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from msgspec import Struct
from redis.asyncio import Redis
from redis.exceptions import RedisError

from callmill.errors import RedisUnavailableError
from callmill.limits.keys import Keys
from callmill.limits.permits import Lease
from callmill.limits.rules import Clock

COMMAND_TIMEOUT_S = 2.0
HORIZON_US = 250_000
LONGEST_COLD_WAIT_US = 5_000_000


class Request(Struct, frozen=True, kw_only=True):
    """What a worker tells and asks in one exchange; see ``lua/reserve.lua``.

    Attributes:
        boot: The life of the state that the worker knows.
        seq: The latest exchange that it knows.
        latest_us: From now to the latest start it was granted.
        lead_us: It can use no start sooner than this.
        guard_us: Timing uncertainty it needs to be allowed for.
        charge: Tokens used beyond what was reserved.
        refund: Tokens reserved and not used.
        unfired: Slots that passed without a call.
        since_us: From now to the earliest start that ``refund`` and ``unfired`` belong to.
        calls: How many calls wait.
        costs: Their tokens.
    """

    boot: str
    seq: int
    latest_us: int
    lead_us: int
    guard_us: int
    charge: int
    refund: int
    unfired: int
    since_us: int
    calls: int
    costs: Sequence[int]


class Grant(Struct, frozen=True, kw_only=True):
    """What Redis answered. Times are microseconds of Redis's clock, or from ``now_us`` on."""

    now_us: int
    boot: str
    seq: int
    again_us: int
    by: int
    pause_us: int
    pause_reason: str
    guard_us: int
    starts_us: list[int]


class LimitStore:
    """One API's limiter state in Redis."""

    def __init__(self, redis: Redis, name: str, worker: str, clocks: Sequence[Clock]) -> None:
        self._redis = redis
        self._worker = worker
        self._clocks = clocks
        self._keys = Keys(name)
        self._limit_keys = [self._keys.limit(clock.spec.unit, clock.spec.window_s) for clock in clocks]
        self._reserve = redis.register_script(script("reserve"))
        self._pause = redis.register_script(script("pause"))
        self._permits = redis.register_script(script("permits"))

    @property
    def channel(self) -> str:
        """Where pauses and new lives of the state are told."""
        return self._keys.channel

    async def publish_rules(self) -> None:
        """Write this worker's limits; what the clocks show and the quotas have counted is kept.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused.
        """
        if not self._clocks:
            return
        pipeline = self._redis.pipeline(transaction=True)
        for key, clock in zip(self._limit_keys, self._clocks, strict=True):
            pipeline.hset(key, mapping=clock.fields())
        await answer(pipeline.execute())

    async def reserve(self, request: Request) -> Grant:
        """Settle, look, and reserve starts for the calls that wait.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused; whether it took the request is unknown.
        """
        raw = await self._exchange(request)
        if len(raw) == 1:  # state lost, or a new limit: tell the rules, then ask again
            await self.publish_rules()
            raw = await self._exchange(request)
        if len(raw) == 1:
            raise RedisUnavailableError("the limits that were just written to Redis are gone again")
        now_us, boot, seq, again_us, by, pause_us, reason, guard_us, *starts_us = raw
        return Grant(
            now_us=now_us,
            boot=_text(boot),
            seq=seq,
            again_us=again_us,
            by=by,
            pause_us=pause_us,
            pause_reason=_text(reason),
            guard_us=guard_us,
            starts_us=starts_us,
        )

    async def pause(self, seconds: float, reason: str) -> None:
        """Pause the API for every worker.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused; whether it took the pause is unknown.
        """
        keys = [self._keys.meta, *self._limit_keys]
        await answer(self._pause(keys=keys, args=[round(seconds * 1e6), reason, self._keys.channel]))

    async def permits(self, *, want: int, used: int, held: int, limit: int, ttl_us: int) -> Lease:
        """Bring this worker's lease of permits up to date.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused; the lease may or may not be renewed.
        """
        args: list[str | int] = [self._worker, want, used, held, ttl_us, limit]
        return Lease(*await answer(self._permits(keys=self._keys.permits, args=args)))

    async def _exchange(self, request: Request) -> list[Any]:
        keys = [self._keys.meta, self._keys.active, self._keys.queue, *self._limit_keys]
        args: list[str | int] = [
            self._worker,
            request.boot,
            request.seq,
            request.latest_us,
            request.lead_us,
            request.guard_us,
            request.charge,
            request.refund,
            request.unfired,
            request.since_us,
            self._keys.channel,
            HORIZON_US,
            LONGEST_COLD_WAIT_US,
            request.calls,
            *request.costs,
        ]
        raw: list[Any] = await answer(self._reserve(keys=keys, args=args))
        return raw


async def answer(pending: Awaitable[Any]) -> Any:
    """Await an answer of Redis, not longer than the command timeout.

    Raises:
        RedisUnavailableError: Redis cannot be reached or refused.
    """
    try:
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            return await pending
    except (RedisError, OSError) as error:  # TimeoutError is an OSError
        raise RedisUnavailableError(f"Redis: {type(error).__name__}: {error}") from error


@cache
def script(name: str) -> str:
    """The text of ``lua/<name>.lua``."""
    return (files("callmill.limits") / "lua" / f"{name}.lua").read_text()


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
