"""Pauses that nobody asked for end early for calls of classes that were not refused."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from limits_kit import rules
from redis.asyncio import Redis

from callmill.config.redis_connections import connect
from callmill.jobs.traffic import TrafficClass
from callmill.limits import Limiter
from callmill.limits.easing import EASED_AFTER_S
from callmill.limits.store import LimitStore

HOSTILE, VICTIM = TrafficClass(tenant="hostile"), TrafficClass(tenant="victim")


@pytest.fixture
def run(redis_url: str) -> Callable[[Callable[[Redis], Awaitable[None]]], None]:
    """Run a coroutine function with a connection."""

    def run_it(work: Callable[[Redis], Awaitable[None]]) -> None:
        async def main() -> None:
            async with asyncio.timeout(20):
                connection = connect(redis_url)
                try:
                    await work(connection)
                finally:
                    await connection.aclose()

        asyncio.run(main())

    return run_it


def test_a_guess_ends_early_and_nothing_else_does(run):
    """A pause of which the end was guessed ends a second after it began; what an answer or a person asked for stays."""

    async def work(redis: Redis) -> None:
        store = LimitStore(redis, "test", "worker")
        assert await store.ease("", 1.0) == (0, "")
        await store.pause([], 60, "429", guessed_s=60)
        left_us, _ = await store.ease("", 1.0)
        assert 0 < left_us <= 1_000_001
        assert await store.ease("", 0.0) == (0, "")
        await store.pause([], 60, "429", guessed_s=50, refused="normal a b")
        left_us, refused = await store.ease("", 0.0)
        assert 9_000_000 < left_us <= 10_000_001
        assert refused == "normal a b"
        left_us, _ = await store.ease("", 0.0, "normal a b")
        assert left_us > 59_000_000
        await store.pause([], 70, "anna")
        assert await store.ease("", 0.0) == (-1, "")

    run(work)


def test_another_class_need_not_wait_for_the_end_of_a_guess(run):
    """After five refusals in a row a class waits for seconds; a call of another one starts about a second later."""

    async def work(redis: Redis) -> None:
        limiter = Limiter(redis, "test", rules("100/second"), worker="worker")
        await limiter.start()
        for _ in range(6):
            slot = await limiter.acquire(traffic=HOSTILE)
            limiter.refused(slot, None, "429")
            limiter.settle(slot, None)
        assert limiter.status().paused_for_s > 5
        async with asyncio.timeout(3):
            limiter.accepted(slot := await limiter.acquire(traffic=VICTIM))
            limiter.settle(slot, None)
        await limiter.aclose()

    run(work)


def test_a_limiter_that_comes_later_eases_a_guess_as_well(run):
    """One that starts after the refusal lets another class try soon, and the class that was refused wait."""

    async def work(redis: Redis) -> None:
        await LimitStore(redis, "test", "first").pause([], 60, "429", guessed_s=60, refused=str(HOSTILE))
        limiter = Limiter(redis, "test", rules("100/second"), worker="later")
        await limiter.start()
        refused = asyncio.create_task(limiter.acquire(traffic=HOSTILE))
        await asyncio.sleep(2 * EASED_AFTER_S)
        assert limiter.status().paused_for_s > 50
        async with asyncio.timeout(1):
            limiter.accepted(slot := await limiter.acquire(traffic=VICTIM))
            limiter.settle(slot, None)
            limiter.settle(await refused, None)
        await limiter.aclose()

    run(work)
