"""Several processes over one limit while the clock of the Redis host jumps."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest
import redis
from limits_caller import SHIFT_KEY, ShiftedRedis
from limits_callers import FULL, LIMIT, calling
from limits_kit import rules

from callmill.limits import Limiter

pytestmark = pytest.mark.chaos


@pytest.mark.parametrize("jump_s", [5.0, 0.3, -0.3, -5.0])
def test_a_jump_of_the_clock_is_no_burst_and_no_stall(redis_url, tmp_path, jump_s):
    """However TIME jumps under load, no second holds more than the limit, and a second later the rate is back."""
    with calling(redis_url, tmp_path) as callers, redis.Redis.from_url(redis_url) as connection:
        connection.set(SHIFT_KEY, round(jump_s * 1e6))
        jumped = monotonic()
        callers.run_until(jumped + 2.2)
        verdict = callers.end()
    assert verdict.worst() <= LIMIT
    assert verdict.granted(jumped + 1.1, jumped + 2.1) >= FULL


@pytest.mark.parametrize("jump_s", [5.0, 0.3, -0.1, -0.3, -5.0])
def test_a_jump_of_the_clock_while_nothing_was_called_is_made_up_for(redis_url, jump_s):
    """After TIME jumped while the API was idle, calls start within a second, as far apart as ever."""

    async def scenario() -> None:
        async with ShiftedRedis.from_url(redis_url) as connection:
            limiter = Limiter(connection, "api", rules("100/second"), worker="w")
            await limiter.start()
            try:
                await limiter.acquire()
                await asyncio.sleep(0.6)
                await connection.set(SHIFT_KEY, round(jump_s * 1e6))
                jumped = monotonic()
                async with asyncio.timeout(3):
                    slots = [await limiter.acquire() for _ in range(20)]
            finally:
                await limiter.aclose()
        assert slots[0].start - jumped < 1.0
        assert slots[-1].start - slots[0].start >= 19 * 0.01

    asyncio.run(scenario())
