"""Quotas in one process: batches go at once, and slots without a call are not lost."""

from __future__ import annotations

import asyncio
from time import monotonic

from limits_kit import rules
from started_limiter import started

from callmill.limits import Limiter

PATIENCE_S = 15


async def call(limiter: Limiter) -> float:
    """Make a call that takes no time; return when it started."""
    slot = await limiter.acquire()
    limiter.settle(slot, None)
    return monotonic()


def test_a_batch_within_a_quota_is_not_spread(redis_url):
    """As many calls as a daily quota takes start within seconds; the next one waits, and the quota is named."""

    async def scenario() -> None:
        async with started(redis_url, rules("200/day")) as limiter:
            async with asyncio.timeout(PATIENCE_S):
                starts = await asyncio.gather(*(call(limiter) for _ in range(200)))
            assert max(starts) - min(starts) < 5
            waiting = asyncio.create_task(call(limiter))
            done, _ = await asyncio.wait([waiting], timeout=0.3)
            assert not done
            assert limiter.status().limited_by == "200/day"
            waiting.cancel()

    asyncio.run(scenario())


def test_a_pause_spends_nothing_of_a_quota(redis_url):
    """Slots that a pause made void are given back: all calls of the quota start after it."""

    async def scenario() -> None:
        async with started(redis_url, rules("10/second", "6/hour")) as limiter:
            calls = [asyncio.create_task(call(limiter)) for _ in range(6)]
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
                while not limiter.status().held:  # noqa: ASYNC110 - the limiter tells its state only to those who ask
                    await asyncio.sleep(0.001)
                await limiter.pause(0.4, "429")
                await asyncio.gather(*calls)

    asyncio.run(scenario())


def test_a_process_that_ends_gives_its_slots_back(redis_url):
    """What a closed limiter held and did not fire, the process that follows can spend."""

    async def scenario() -> None:
        limits = rules("4/second", "3/hour")
        async with asyncio.timeout(PATIENCE_S):
            async with started(redis_url, limits, "old") as limiter:
                calls = [asyncio.create_task(call(limiter)) for _ in range(3)]
                await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
                while not limiter.status().held:  # noqa: ASYNC110 - the limiter tells its state only to those who ask
                    await asyncio.sleep(0.001)
            fired = limiter.status().fired
            await asyncio.gather(*calls, return_exceptions=True)
            async with started(redis_url, limits, "new") as limiter:
                await asyncio.gather(*(call(limiter) for _ in range(3 - fired)))
                assert fired < 3

    asyncio.run(scenario())
