"""Scale: how much each benchmark does."""

from __future__ import annotations

from msgspec import Struct


class Scale(Struct, frozen=True, kw_only=True):
    """How much each benchmark does.

    Attributes:
        rounds: Alternating runs of what is measured and of its baseline.
        calls: Calls of one run of a worker.
        bare_calls: Calls of one run of a bare loop.
        slow_calls: Calls of one run of the baselines that are an order of magnitude slower.
        enqueued: Jobs that one run of the producer submits.
        celery_enqueued: Tasks that one run of plain Celery sends.
        queued: Jobs in Redis when its memory is read.
        submitted: Jobs that the producer submits while its memory is watched.
        memory_calls: Calls that a worker makes while its memory is watched.
        memory_settled: Calls after which its memory is read first.
        single_calls: Calls made one after the other.
        limited_s: Seconds at the limit.
        day_calls: Calls of a day in miniature.
        killed_jobs: Jobs of the batch whose workers are killed.
        idle_s: Seconds that a worker with nothing to do is watched.
        idle_calls: Calls that it made before.
        paced_s: Seconds that a worker at its limit is measured.
        scaled_s: Seconds that one and two processes are measured.
        starts: Times that a worker is started.
    """

    rounds: int
    calls: int
    bare_calls: int
    slow_calls: int
    enqueued: int
    celery_enqueued: int
    queued: int
    submitted: int
    memory_calls: int
    memory_settled: int
    single_calls: int
    limited_s: int
    killed_jobs: int
    day_calls: int
    idle_s: int
    idle_calls: int
    paced_s: int
    scaled_s: int
    starts: int


FULL = Scale(
    rounds=3,
    calls=60_000,
    bare_calls=30_000,
    slow_calls=5_000,
    enqueued=300_000,
    celery_enqueued=10_000,
    queued=100_000,
    submitted=1_000_000,
    memory_calls=1_000_000,
    memory_settled=100_000,
    single_calls=300,
    limited_s=60,
    killed_jobs=10_000,
    day_calls=2_000_000,
    idle_s=60,
    idle_calls=20_000,
    paced_s=8,
    scaled_s=10,
    starts=10,
)

QUICK = Scale(
    rounds=1,
    calls=10_000,
    bare_calls=5_000,
    slow_calls=1_000,
    enqueued=50_000,
    celery_enqueued=2_000,
    queued=100_000,
    submitted=100_000,
    memory_calls=50_000,
    memory_settled=20_000,
    single_calls=50,
    limited_s=10,
    killed_jobs=3_000,
    day_calls=40_000,
    idle_s=10,
    idle_calls=5_000,
    paced_s=3,
    scaled_s=4,
    starts=3,
)
