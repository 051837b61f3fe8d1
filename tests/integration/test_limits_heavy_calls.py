"""Calls that count as several requests, in processes that ask ahead and are late: what they take was reserved."""

from __future__ import annotations

import asyncio
import time
from random import Random

import pytest
from limits_kit import heaviest_window, rules
from started_limiter import started

from callmill.limits import Limiter

WINDOW_US = 1_000_000
PATIENCE_S = 25


@pytest.mark.parametrize("seed", [1, 2])
def test_slots_of_any_weights_keep_the_limit(redis_url, seed):
    """The slots that calls of mixed weights start in, some dropped because the process stalled, keep a strict limit."""
    limit, drawn, slots = 60, Random(seed), []

    async def call(limiter: Limiter, weight: int) -> None:
        slot = await limiter.acquire(weight=weight)
        slots.append((slot.start * 1e6, weight))
        assert slot.cost.weight == weight
        limiter.settle(slot, None)

    async def demand(limiter: Limiter) -> None:
        weights = [drawn.choice([1, 1, 1, 2, 7, 20]) for _ in range(40)]
        calls = [asyncio.create_task(call(limiter, weight)) for weight in weights]
        for _ in range(4):
            await asyncio.sleep(0.3)
            time.sleep(0.02)  # noqa: ASYNC251 - a stall of the process: slots that are due in it are dropped
        await asyncio.gather(*calls)

    async def scenario() -> None:
        limits = rules(f"{limit}/second", guard_s=0.01)
        async with (
            started(redis_url, limits, "a", socket_timeout=2) as first,
            started(redis_url, limits, "b", socket_timeout=2) as second,
        ):
            first.expect(lambda _traffic, _model: 5)
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.gather(demand(first), demand(second))

    asyncio.run(scenario())
    assert len(slots) == 80
    assert heaviest_window(slots, WINDOW_US) <= limit


def test_a_heavy_call_leaves_slots_of_light_ones_alone(redis_url):
    """Slots that were reserved ahead for light calls do not go to a heavy one: it waits for its own."""

    async def scenario() -> None:
        async with started(redis_url, rules("50/second"), socket_timeout=2) as limiter:
            limiter.expect(lambda _traffic, _model: 8)
            await limiter.acquire()
            light = [asyncio.create_task(limiter.acquire()) for _ in range(2)]
            heavy = asyncio.create_task(limiter.acquire(weight=10))
            more = [asyncio.create_task(limiter.acquire()) for _ in range(10)]
            async with asyncio.timeout(PATIENCE_S):
                slots = await asyncio.gather(heavy, *light, *more)
            own = slots[0].start
            after = sorted(slot.start for slot in slots[1:] if slot.start > own)
            assert own > max(slot.start for slot in slots[1:3])
            assert not after or after[0] - own >= 10 / 50

    asyncio.run(scenario())


def test_what_is_given_back_to_a_quota_is_used_at_once(redis_url):
    """Slots of a quota that a stalled process dropped are asked for again when they are given back, not later."""

    async def scenario() -> None:
        limits = rules("6/hour", "1000/second")
        async with started(redis_url, limits, socket_timeout=2) as limiter, asyncio.timeout(PATIENCE_S):
            calls = [asyncio.create_task(limiter.acquire()) for _ in range(7)]
            while not limiter.status().granted:  # noqa: ASYNC110 - the limiter tells its state only to those who ask
                await asyncio.sleep(0)
            assert limiter.status().held
            time.sleep(0.4)  # noqa: ASYNC251 - a stall of the process: all slots are late now
            stalled = time.monotonic()
            await asyncio.gather(*calls[:6])
            assert limiter.status().slots_missed > 0
            assert time.monotonic() - stalled < 2.5
            calls[6].cancel()

    asyncio.run(scenario())
