"""More models than a process tells apart: all their calls are made, each model's limit holds, nobody else waits."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
import redis
from limits_kit import rules
from local_nodes import until
from started_limiter import started

from callmill.jobs.traffic import Priority, TrafficClass
from callmill.limits import Limiter, groups
from callmill.limits.limiter import MOST_IDLE_GROUPS

HOSTILE, VICTIM = (TrafficClass(Priority.NORMAL, name) for name in ("hostile", "victim"))
PLACES, MODELS = 20, 60
PATIENCE_S = 30


@pytest.fixture(autouse=True)
def _few_places(monkeypatch):
    """Let a process tell few models apart."""
    monkeypatch.setattr(groups, "MOST_MODELS", PLACES)
    monkeypatch.setattr(groups, "MOST_LEASED", PLACES)


def run(url: str, scene: Callable[[Limiter], Awaitable[None]], *limits: str) -> None:
    """Play a scene with a limiter of these limits."""

    async def play() -> None:
        async with started(url, rules(*limits)) as limiter, asyncio.timeout(PATIENCE_S):
            await limiter.acquire()
            await scene(limiter)

    asyncio.run(play())


def test_calls_of_further_models_go_on_by_themselves(redis_url):
    """Of three times as many models as there are places every call is made, and never are more told apart."""

    async def scene(limiter: Limiter) -> None:
        most = 0

        async def call(model: str) -> None:
            nonlocal most
            limiter.settle(await limiter.acquire(model=model), None)
            most = max(most, len(limiter._groups.models - {""}))

        await asyncio.gather(*(call(f"m{number}") for number in range(MODELS)))
        assert most <= PLACES

    run(redis_url, scene, "500/second", "50/second per model")


def test_the_limit_of_a_model_holds_while_it_comes_and_goes(redis_url):
    """Two processes that tell different models apart never make more calls of one at once than its limit says."""

    async def play() -> None:
        in_flight: Counter[str] = Counter()
        most = 0

        async def call(limiter: Limiter, model: str) -> None:
            nonlocal most
            slot = await limiter.acquire(model=model)
            in_flight[model] += 1
            most = max(most, in_flight[model])
            await asyncio.sleep(0.02)
            in_flight[model] -= 1
            limiter.settle(slot, None)

        limits = rules("500/second", "2 concurrent per model")
        async with (
            started(redis_url, limits, "a") as one,
            started(redis_url, limits, "b") as other,
            asyncio.timeout(PATIENCE_S),
        ):
            models = [f"m{number}" for number in range(MODELS // 2)] * 3
            await asyncio.gather(
                *(call(one, model) for model in models), *(call(other, model) for model in reversed(models))
            )
        assert most == 2

    asyncio.run(play())


def test_a_class_with_a_model_of_its_own_waits_for_no_place(redis_url):
    """While all places that another class may have are taken for a minute, a call of a new class starts at once."""

    async def scene(limiter: Limiter) -> None:
        calls = [asyncio.create_task(limiter.acquire(model=f"m{n}", traffic=HOSTILE)) for n in range(MODELS)]
        await asyncio.sleep(0)  # each of them asks
        assert limiter._groups.waiting
        async with asyncio.timeout(5):
            await limiter.acquire(model="own", traffic=VICTIM)
        assert limiter._groups.waiting
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    run(redis_url, scene, "500/second", "1/minute per model")


def test_what_is_idle_is_forgotten_though_nothing_else_comes(redis_url):
    """Seconds after the last of many calls the process keeps no more kinds of calls than a few."""

    async def scene(limiter: Limiter) -> None:
        async def call(number: int) -> None:
            limiter.settle(await limiter.acquire(model=f"m{number}"), None)

        await asyncio.gather(*(call(number) for number in range(150)))
        await asyncio.to_thread(until, lambda: len(limiter._groups) <= MOST_IDLE_GROUPS, 10, "the others forgotten")

    groups.MOST_MODELS = 1000  # the fixture takes it back
    run(redis_url, scene, "500/second", "50/second per model")


def test_pauses_of_models_leave_nothing_behind(redis_url):
    """What Redis keeps of a model's pause is gone ten minutes after it, when others are paused."""

    async def scene(limiter: Limiter) -> None:
        await limiter.pause(0.01, "busy", "model:one")

    run(redis_url, scene, "50/second per model")
    with redis.Redis.from_url(redis_url, decode_responses=True) as connection:
        meta, paused = (f"callmill:limit:{{api}}:{part}" for part in ("meta", "paused"))
        assert connection.hexists(meta, "pause:model:one")
        connection.zincrby(paused, -601_000_000, "model:one")

        async def another(limiter: Limiter) -> None:
            await limiter.pause(0.01, "busy", "model:two")

        run(redis_url, another, "50/second per model")
        until(lambda: not connection.hexists(meta, "pause:model:one"), 5, "one forgotten")
        assert connection.hexists(meta, "pause:model:two")
        assert connection.ttl(paused) > 0
