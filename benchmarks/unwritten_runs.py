"""Runs of batches against servers that nobody knows, each with a server, a Redis and workers of its own."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path

import aiohttp
from limits_site import Site, limits_site
from local_nodes import RedisProcess, until
from msgspec import Struct
from real_limiters import Tally
from unwritten_cases import SLOTS, Make

from callmill.config.redis_connections import connect
from callmill.ledger import LedgerSession
from callmill.ledger.fleet import Fleet
from callmill.producer import Job

_PREFIX = "callmill-bench-"
_LEAST_PATIENCE_S, _PATIENCE = 30.0, 4.0
"""How long a batch may take: so many seconds, and so many times its ideal."""


class Ideal(Struct, frozen=True):
    """What is possible.

    Attributes:
        took_s: The least time.
        latency_s: The least mean latency; 0: it is of no interest.
    """

    took_s: float
    latency_s: float = 0.0


class Run(Struct, frozen=True):
    """One run: what the server saw, and what became of the jobs."""

    tally: Tally
    ideal: Ideal
    ok: int
    failed: int
    jobs: int

    @property
    def times(self) -> float:
        """Its time as a multiple of the ideal."""
        return self.tally.took_s / self.ideal.took_s

    @property
    def latency(self) -> float:
        """Its mean latency as a multiple of the ideal, where that is known."""
        return self.tally.mean_latency_s / self.ideal.latency_s

    @property
    def told(self) -> str:
        """What is wrong with the jobs' outcomes; empty: nothing."""
        missing = self.jobs - self.ok - self.failed
        parts = [f"{self.failed} failed" if self.failed else "", f"{missing} not done" if missing else ""]
        return ", ".join(filter(None, parts))


def run_batch(make: Make, *, jobs: int, workers: int, ideal: Ideal) -> Run:
    """Run a batch; what is not done after several times the ideal is left.

    Raises:
        MissingProgramError: This machine lacks what the server is made of.
    """
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name, make(Path(name)) as served:
        redis = RedisProcess(Path(name)).start()
        try:
            redis.ready()
            profiles = {"api": [f'base_url = "{served.url}"']}
            with limits_site(Path(name), redis.url, profiles, workers=workers) as site:
                until(lambda: asyncio.run(_reported(redis.url)) == workers, what="every worker has reported")
                return _wait(site, jobs, ideal, served.tally)
        finally:
            redis.teardown()


def run_alone(make: Make, *, jobs: int) -> Ideal:
    """Measure a server without Callmill: the latency while it is just busy, the time while it always has work."""
    tallies = []
    for in_flight in (SLOTS, 4 * SLOTS):
        with tempfile.TemporaryDirectory(prefix=_PREFIX) as name, make(Path(name)) as served:
            asyncio.run(_call(served.url, jobs, in_flight))
            tallies.append(served.tally())
    busy, saturated = tallies
    return Ideal(min(busy.took_s, saturated.took_s), busy.mean_latency_s)


def _wait(site: Site, jobs: int, ideal: Ideal, tally: Callable[[], Tally]) -> Run:
    batch = site.client.submit([Job("POST", f"/job/{n}", api="api", json={"n": n}) for n in range(jobs)])
    try:
        batch.wait(_LEAST_PATIENCE_S + _PATIENCE * ideal.took_s)
    except TimeoutError:
        progress = batch.progress()
        batch.cancel()
    else:
        progress = batch.progress()
    return Run(tally(), ideal, progress.succeeded, progress.failed, jobs)


async def _reported(redis_url: str) -> int:
    redis = connect(redis_url)
    try:
        return len(await Fleet(LedgerSession(redis)).workers())
    finally:
        await redis.aclose()


async def _call(url: str, jobs: int, in_flight: int) -> None:
    numbers = count()

    async def caller(session: aiohttp.ClientSession) -> None:
        while (number := next(numbers)) < jobs:
            async with session.post(f"{url}/job/{number}", json={"n": number}) as answer:
                await answer.read()

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(caller(session) for _ in range(in_flight)))
