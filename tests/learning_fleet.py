"""Fleets that meet model APIs in virtual time: real limiters and real scripts on a real Redis."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Any, cast

import redis
from model_apis import Answer, Api
from virtual_time import InstantRedis, VirtualLoop, virtual_time

from callmill.config.limit_spec import parse_limit
from callmill.limits import Limiter
from callmill.limits.rules import LimitRules

WAY_S = 0.0004
"""To Redis and back."""

MEAN_WAY_S = 0.0005
"""To the API, on average."""

COLD_S = 1.5
"""Until a new limiter grants starts."""


@dataclass
class Run:
    """What a fleet did; times are seconds since its first call."""

    taken_s: list[float] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    refusals: Counter[int] = field(default_factory=Counter)

    @property
    def calls(self) -> int:
        """All calls that were made."""
        return len(self.taken_s) + len(self.refused_s)

    @property
    def refused(self) -> float:
        """The part of them that was refused."""
        return len(self.refused_s) / self.calls

    @property
    def took_s(self) -> float:
        """When the last job was done."""
        return max(self.taken_s)

    @property
    def most_refused(self) -> int:
        """The refusals of the job that was refused most."""
        return max(self.refusals.values(), default=0)

    @property
    def mean_latency_s(self) -> float:
        """Of calls that were taken."""
        return mean(self.latencies_s)

    def per_s(self, since_s: float, until_s: float) -> float:
        """Calls a second that were taken then."""
        return sum(since_s <= at < until_s for at in self.taken_s) / (until_s - since_s)


class FleetRun:
    """Workers with runners; each does one job after the other, and a refused job waits behind those that wait."""

    def __init__(self, loop: VirtualLoop, api: Api, jobs: int, seed: int) -> None:
        self.run = Run()
        self._loop = loop
        self._api = api
        self._jobs = iter(range(jobs))
        self._random = random.Random(seed)
        self._began_s = 0.0

    async def work(self, limiters: Sequence[Limiter], runners: int, until_s: float) -> None:
        """Do the jobs, or as many as can be done until then."""
        self._began_s = self._loop.time()
        tasks = [asyncio.create_task(self._runner(limiter)) for _ in range(runners) for limiter in limiters]
        await asyncio.wait(tasks, timeout=until_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _runner(self, limiter: Limiter) -> None:
        for job in self._jobs:
            while not await self._attempt(limiter, job):
                pass

    async def _attempt(self, limiter: Limiter, job: int) -> bool:
        slot, started_s = limiter.try_acquire() or await limiter.acquire(), self._loop.time()
        await asyncio.sleep(self._random.expovariate(1 / MEAN_WAY_S))
        answer = await self._api.call(self._loop.time())
        if answer.taken:
            limiter.accepted(slot)
            self._taken(started_s)
        else:
            limiter.refused(slot, answer.after_s, "429")
            self._refused(job)
        limiter.settle(slot, None)
        return answer.taken

    def _taken(self, started_s: float) -> None:
        now_s = self._loop.time()
        self.run.taken_s.append(now_s - self._began_s)
        self.run.latencies_s.append(now_s - started_s)

    def _refused(self, job: int) -> None:
        self.run.refused_s.append(self._loop.time() - self._began_s)
        self.run.refusals[job] += 1


@dataclass
class Changing:
    """An API that something happens to after a while."""

    api: Api
    after_s: float
    change: Callable[[], None]
    _began_s: float | None = None

    async def call(self, now_s: float) -> Answer:
        """Answer as the API does at this time."""
        if self._began_s is None:
            self._began_s = now_s
        if now_s >= self._began_s + self.after_s:
            self.change()
        return await self.api.call(now_s)


def run_fleet(
    url: str,
    make: Callable[[], Api],
    *,
    jobs: int,
    workers: int = 1,
    limits: Sequence[str] = (),
    runners: int = 256,
    until_s: float = 150.0,
    seed: int = 1,
) -> Run:
    """Let workers do jobs on an empty Redis, in virtual time."""
    redis.Redis.from_url(url).flushall()
    with virtual_time() as loop:
        return loop.run_until_complete(_run(loop, url, make, jobs, workers, limits, runners, until_s, seed))


async def _run(  # noqa: PLR0917 - what run_fleet was told
    loop: VirtualLoop,
    url: str,
    make: Callable[[], Api],
    jobs: int,
    workers: int,
    limits: Sequence[str],
    runners: int,
    until_s: float,
    seed: int,
) -> Run:
    connection = cast("Any", InstantRedis(url, loop, WAY_S))
    rules = LimitRules(tuple(map(parse_limit, limits)))
    limiters = list(_limiters(connection, rules, workers))
    for limiter in limiters:
        await limiter.start()
    await asyncio.sleep(COLD_S)
    fleet = FleetRun(loop, make(), jobs, seed)
    await fleet.work(limiters, runners, until_s)
    for limiter in limiters:
        await limiter.aclose()
    return fleet.run


def _limiters(connection: Any, rules: LimitRules, workers: int) -> Iterator[Limiter]:
    for number in range(workers):
        yield Limiter(connection, "api", rules, worker=f"w{number}")
