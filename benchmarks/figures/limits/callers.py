"""Processes that call nothing: they ask the limiter for starts, and tell when they asked and when they started.

``python -m figures.limits.callers PLAN`` is one of them; ``run_callers`` starts several and gathers what they tell.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import Sequence
from time import monotonic

import msgspec
import uvloop
from figures.limits.together import begin_together, run_together
from msgspec import Struct
from redis.asyncio import Redis

from callmill.config.limit_spec import Enforcer, parse_limit
from callmill.jobs.traffic import TrafficClass
from callmill.limits import Limiter, LimitRules


class Demand(Struct, frozen=True, kw_only=True):
    """Calls that want to start: ``callers`` who ask again at once, and ``per_s`` arrivals at random."""

    callers: int = 0
    per_s: float = 0.0
    tenant: str = ""


class Plan(Struct, frozen=True, kw_only=True):
    """What one process does.

    Attributes:
        redis_url: Redis of all that share the limit.
        seconds: How long it goes on.
        demands: Who calls.
    """

    redis_url: str
    limit: str
    enforcer: Enforcer
    burst: int
    seconds: float
    demands: list[Demand]


class Call(Struct, frozen=True, array_like=True):
    """When a call wanted to start, and when it did; of the monotonic clock."""

    asked_s: float
    started_s: float


def run_callers(plans: Sequence[Plan]) -> list[list[list[Call]]]:
    """Run a process for each plan, all on one Redis and at the same time; return the calls of each, by demand."""
    told = run_together(
        "figures.limits.callers", [msgspec.json.encode(plan).decode() for plan in plans], plans[0].redis_url
    )
    return msgspec.convert(told, list[list[list[Call]]])


async def follow(plan: Plan) -> list[list[Call]]:
    """Do what a plan says and return the calls by demand."""
    rules = LimitRules((parse_limit(plan.limit),), plan.enforcer, plan.burst)
    async with Redis.from_url(plan.redis_url, socket_timeout=2) as redis:
        limiter = Limiter(redis, "bench", rules, worker=f"process-{os.getpid()}")
        await limiter.start()
        try:
            return await _follow(plan, limiter, await begin_together(redis))
        finally:
            await limiter.aclose()


async def _follow(plan: Plan, limiter: Limiter, begin_s: float) -> list[list[Call]]:
    calls: list[list[Call]] = [[] for _ in plan.demands]
    tasks = set[asyncio.Task[None]]()
    for demand, told in zip(plan.demands, calls, strict=True):
        tasks |= {asyncio.create_task(_call_again(limiter, demand, told)) for _ in range(demand.callers)}
        if demand.per_s:
            tasks.add(asyncio.create_task(_arrive(limiter, demand, told, begin_s)))
    failed, _ = await asyncio.wait(
        tasks, timeout=begin_s + plan.seconds - monotonic(), return_when=asyncio.FIRST_EXCEPTION
    )
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in failed:
        task.result()  # raises what ended it: left alone, callers go on for ever
    return calls


async def _call_again(limiter: Limiter, demand: Demand, told: list[Call]) -> None:
    while True:
        await _call(limiter, demand, told)


async def _arrive(limiter: Limiter, demand: Demand, told: list[Call], at_s: float) -> None:
    async with asyncio.TaskGroup() as calls:
        while True:
            at_s += random.expovariate(demand.per_s)
            await asyncio.sleep(max(0.0, at_s - monotonic()))
            calls.create_task(_call(limiter, demand, told))


async def _call(limiter: Limiter, demand: Demand, told: list[Call]) -> None:
    asked_s = monotonic()
    slot = await limiter.acquire(traffic=TrafficClass(tenant=demand.tenant))
    told.append(Call(asked_s, monotonic()))
    limiter.settle(slot, None)


def main() -> None:
    """Follow the plan on the command line and print the calls as JSON."""
    calls = uvloop.run(follow(msgspec.json.decode(sys.argv[1], type=Plan)))
    sys.stdout.buffer.write(msgspec.json.encode(calls))


if __name__ == "__main__":
    main()
