"""Measure what a look at the overview takes, where there is much to look at.

``python benchmarks/bench_overview.py``: 1 000 batches, one of them of 10 000 000 jobs, 10 APIs that were called for an
hour, 20 workers. Only what is kept about jobs is made, not the jobs: a look must not depend on them.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

import msgspec
from redis.asyncio import Redis
from redis_server import redis_server

from callmill.config.public_api import PublicApi
from callmill.config.redis_connections import connect
from callmill.ledger import Batches, LedgerSession, keys
from callmill.ledger.fleet import Fleet, LaneStatus, WorkerStatus
from callmill.ledger.records import BatchState
from callmill.overview.reader import Overview

BATCHES, JOBS, APIS, WORKERS, LOOKS = 1_000, 10_000_000, 10, 20, 30
LATENCY_BUCKETS, STEPS, CAUSES, SLOWEST, MINUTES = range(200, 300), 240, 64, 10, 64
_RETENTION_MS = 86_400_000


async def fill(redis: Redis) -> str:
    """Write what a busy fleet leaves behind; return the id of the large batch."""
    session, rnd = LedgerSession(redis), random.Random(1)
    await _apis(session, rnd)
    await _workers(session)
    batches = Batches(session)
    large = ""
    for number in range(BATCHES):
        large = await batches.create(f"batch {number}", retention_ms=_RETENTION_MS)
        jobs = JOBS if number == BATCHES - 1 else rnd.randint(1, 100_000)
        await _batch(redis, large, jobs, ended=number % 10 != BATCHES % 10 - 1)
    return large


async def _batch(redis: Redis, batch_id: str, jobs: int, *, ended: bool) -> None:
    names, now_s = keys.BatchKeys(batch_id), int(time.time())
    counts = {"total": jobs, "chunks": jobs // 100, "succeeded": jobs // 2, "failed": jobs // 20, "calls": jobs}
    facts: dict[str, str | int] = {**counts, "phase": "sealed", "api:api0": 1, "created_ms": now_s * 1000 - 3_600_000}
    pipeline = redis.pipeline(transaction=False)
    pipeline.hset(names.meta, mapping=facts | ({"ended_ms": now_s * 1000} if ended else {}))
    pipeline.hset(names.latency, mapping={str(bucket): jobs // len(LATENCY_BUCKETS) for bucket in LATENCY_BUCKETS})
    pipeline.hset(names.rate, mapping={str(at % 64): f"{at} 100" for at in range(now_s - 63, now_s + 1)})
    noted = {str(step): " ".join([str(step * jobs // 500)] * 7) for step in range(STEPS)}
    pipeline.hset(names.history, mapping={**noted, "step": "16"})
    pipeline.hset(names.errors, mapping={f"http_{400 + at}": jobs // 20 // CAUSES for at in range(CAUSES)})
    pipeline.zadd(names.slowest, {f"{at} row {at}": 10**7 + at for at in range(SLOWEST)})
    await pipeline.execute()


async def _apis(session: LedgerSession, rnd: random.Random) -> None:
    limits = ("6000/minute", "500000 tokens/minute", "64 concurrent")
    apis = [PublicApi(name=f"api{at}", base_url="http://127.0.0.1", limits=limits) for at in range(APIS)]
    await Fleet(session).announce_apis(apis)
    minute = int(time.time()) // 60
    for api in apis:
        names = keys.ApiKeys(api.name)
        counts = {"calls": 5000, "r:2xx": 4800, "r:429": 100, "r:timeout": 100, "succeeded": 4800, "tokens": 10**6}
        counts |= {f"{kind}:{bucket}": rnd.randint(1, 100) for kind in "lw" for bucket in LATENCY_BUCKETS}
        ring = {
            str(at % MINUTES): msgspec.msgpack.encode({**counts, "at": at})
            for at in range(minute - MINUTES + 1, minute + 1)
        }
        await session.redis.hset(names.total, mapping=counts)
        await session.redis.hset(names.minutes, mapping=ring)


async def _workers(session: LedgerSession) -> None:
    fleet, apis = Fleet(session), [f"api{at}" for at in range(APIS)]
    for number in range(WORKERS):
        status = WorkerStatus(
            id=f"worker{number}",
            host="host",
            pid=number,
            started_ms=0,
            calls=10**6,
            cpu_s=100.0,
            draining=False,
            apis=apis,
            lanes=[LaneStatus(api=api, in_flight=10, waiting=5, rate=50.0) for api in apis],
        )
        await fleet.report(status)
        await session.redis.persist(keys.worker_status(status.id))


async def timed(what: str, look: Callable[[], Awaitable[object]]) -> None:
    """Print how long a look takes, and how much of that is CPU of this process."""
    took_ms, cpu_ms = [], []
    for _ in range(LOOKS):
        began_s, cpu_s = time.perf_counter(), time.process_time()
        await look()
        took_ms.append((time.perf_counter() - began_s) * 1000)
        cpu_ms.append((time.process_time() - cpu_s) * 1000)
    print(f"{what:<34} p50 {median(took_ms):6.1f} ms, at best {min(took_ms):6.1f}, CPU {median(cpu_ms):6.1f} ms")


async def measure(url: str) -> None:
    """Fill a server and look at it."""
    redis = connect(url)
    try:
        large = await fill(redis)
        overview = Overview(LedgerSession(redis), redis)
        await timed("the first 50 batches", overview.batches)
        await timed("batches 900 to 950", lambda: overview.batches(900))
        await timed("the first 50 batches that run", lambda: overview.batches(state=BatchState.RUNNING))
        await timed(f"a batch of {JOBS:,} jobs", lambda: overview.batch(large))
        await timed(f"{APIS} APIs", overview.apis)
        await timed(f"{WORKERS} workers", overview.workers)
        await timed("the state of Redis", overview.redis_state)
    finally:
        await redis.aclose()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as server_url:
        asyncio.run(measure(server_url))
