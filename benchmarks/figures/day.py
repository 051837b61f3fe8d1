"""A day of traffic in miniature: what grows in workers and in Redis over very many batches that come, end and go.

Every hour of it brings a bulk batch, an urgent one of a tenant and one whose jobs fail; their outcomes are read and
released as they come, and at the hour's end the batches are deleted.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import redis
from child import Child
from figure import Figure
from proc import rss_mb
from redis_server import used_memory
from scale import Scale
from stage import Stage
from workload import API, jobs

from callmill.producer import Batch, Client, Job

_HOURS = 20
_TENTH_HOURS = _HOURS // 10
_MAX_PENDING = 20_000
_RELEASE_EVERY = 5_000
_FAILING = 0.01
_URGENT = 0.1
_numbers = itertools.count(1)


def measure(scale: Scale) -> list[Figure]:
    """Compare memory in the last tenth of the day with that in the first, and keys at its end with those before it."""
    per_hour = scale.day_calls // _HOURS
    with Stage() as stage, stage.start_worker() as one, stage.start_worker() as other:
        workers = (one, other)
        stage.await_workers(*workers)
        _hour(stage.client, per_hour // 10)
        known = _keys(stage.redis_url)
        memory_mb: list[list[float]] = []
        redis_bytes: list[int] = []
        for _ in range(_HOURS):
            _hour(stage.client, per_hour)
            memory_mb.append(_memory_mb(workers))
            redis_bytes.append(used_memory(stage.redis_url))
        left = sorted(_keys(stage.redis_url) - known)
    # One moment's memory depends on what was just under way: the most of the first tenth against that of the last.
    settled_mb, end_mb = _most(memory_mb[:_TENTH_HOURS]), _most(memory_mb[-_TENTH_HOURS:])
    settled_bytes, end_bytes = max(redis_bytes[:_TENTH_HOURS]), max(redis_bytes[-_TENTH_HOURS:])
    growth = [end / settled for end, settled in zip(end_mb, settled_mb, strict=True)]
    calls = f"{per_hour * _HOURS:,} calls in {3 * _HOURS} batches"
    return [
        Figure(
            name="worker memory growth over a day in miniature",
            unit="%",
            runs=((max(growth) - 1) * 100,),
            must=10,
            note=f"{calls}; at most {_in_words(settled_mb)} MB in the first tenth, {_in_words(end_mb)} MB in the last",
        ),
        Figure(
            name="Redis memory growth over a day in miniature",
            unit="%",
            runs=((end_bytes / settled_bytes - 1) * 100,),
            must=10,
            note=f"at most {settled_bytes / 1e6:.2f} MB in the first tenth, {end_bytes / 1e6:.2f} MB in the last",
        ),
        Figure(
            name="keys left of deleted batches",
            unit="keys",
            runs=(float(len(left)),),
            must=0,
            note=", ".join(left[:3]),
        ),
    ]


def _hour(client: Client, calls: int) -> None:
    urgent, failing = int(calls * _URGENT), int(calls * _FAILING)
    counts = {"urgent": urgent, "failing": failing, "bulk": calls - urgent - failing}
    with ThreadPoolExecutor(2 * len(counts)) as threads:
        batches = list(threads.map(lambda kind: _submitted(client, threads, kind, counts[kind]), counts))
        for _ in threads.map(_read_all, batches, counts.values()):
            pass
    for batch in batches:
        batch.delete()


def _submitted(client: Client, threads: ThreadPoolExecutor, kind: str, count: int) -> Batch:
    """Begin to submit a batch; return it as soon as it is there."""
    batch_id = f"{kind}-{next(_numbers)}"
    priority = {"urgent": "interactive", "failing": "normal", "bulk": "bulk"}[kind]
    source = _failing_jobs(count) if kind == "failing" else jobs(count, "/ok")
    submission = threads.submit(
        client.submit,
        source,
        batch_id=batch_id,
        max_pending=_MAX_PENDING,
        priority=priority,
        tenant="acme" if kind == "urgent" else "",
    )
    while True:
        found = [progress for progress in client.batches(5) if progress.id == batch_id]
        if found:
            return client.batch(batch_id)
        if submission.done():
            submission.result()


def _failing_jobs(count: int) -> Iterator[Job]:
    for number in range(count):
        yield Job("GET", f"/missing/{number}", api=API)


def _read_all(batch: Batch, count: int) -> None:
    read = 0
    for read, outcome in enumerate(batch.outcomes(), 1):
        if read % _RELEASE_EVERY == 0:
            batch.release(outcome.cursor)
    if read != count:
        raise RuntimeError(f"{read} outcomes of {count} jobs of {batch.id}")


def _memory_mb(workers: tuple[Child, Child]) -> list[float]:
    return [rss_mb(worker.pid) for worker in workers]


def _most(memory_mb: list[list[float]]) -> list[float]:
    """Return the most that each worker had."""
    return [max(of_worker) for of_worker in zip(*memory_mb, strict=True)]


def _in_words(memory_mb: list[float]) -> str:
    return " and ".join(f"{one_mb:.0f}" for one_mb in memory_mb)


def _keys(redis_url: str) -> set[str]:
    with redis.Redis.from_url(redis_url) as connection:
        return {key.decode() for key in connection.scan_iter(count=1000)}
