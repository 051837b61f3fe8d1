"""BatchView: one batch as its page shows it; what it costs to read does not grow with its jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct
from redis.asyncio.client import Pipeline

from callmill.jobs.wire import assigned_id
from callmill.ledger.keys import BatchKeys
from callmill.ledger.latency import mid_us
from callmill.ledger.records import BatchRecord
from callmill.overview.progress import Progress

OTHER = "other"
"""The cause that stands for all that are not counted by themselves."""

_OTHER_FIELD = "(other)"
_SLOWEST, _STEPS = 10, 240


class HistoryPoint(Struct, frozen=True, kw_only=True):
    """What happened within one step of a batch's time; the points sum up to the batch's counters, exactly.

    Attributes:
        t_s: When the step ended, in seconds since the batch was submitted.
        succeeded: Jobs recorded as succeeded.
        failed: Jobs recorded as failed, less those run again: below 0 where more were run again than failed.
        calls: HTTP calls made.
        retries: Calls repeated after a failure.
        throttled: Calls that the API answered with 429.
        latency_s: Mean latency of the calls that ended with an outcome, within 2.5 %; None where there was none.
    """

    t_s: float
    succeeded: int
    failed: int
    calls: int
    retries: int
    throttled: int
    latency_s: float | None = None


class ErrorCount(Struct, frozen=True, kw_only=True):
    """Jobs that count as failed now, of one cause: ``http_404``, ``timeout``, ...; ``other``: of all further causes."""

    cause: str
    jobs: int


class SlowJob(Struct, frozen=True, kw_only=True):
    """One of the jobs whose recorded call took longest; ``latency_s``: from its start to its end."""

    index: int
    id: str
    latency_s: float


class BatchView(Struct, frozen=True, kw_only=True):
    """A batch in detail.

    Attributes:
        history: Its time so far in steps, the oldest first; at most 240.
        step_s: How long a step is; the last one is not over while the batch runs.
        errors: The failed jobs by cause, the most frequent first; they sum up to ``progress.failed``.
        slowest: The ten slowest jobs, the slowest first.
        latency_buckets: Bucket (``callmill.ledger.latency``) -> calls.
        age_s: Seconds since it was submitted.
        created_at: Unix time in seconds, as are ``began_at`` and ``ended_at``.
        began_at: When it was submitted, or failed jobs of it ran again after it was over.
        ended_at: None while it runs.
        apis: The APIs that its jobs call.
        chunks: Chunks written so far.
        leased: Chunks that workers hold now.
        unread_bytes: Bytes of its outcomes that were not released.
        max_unread_bytes: Beyond them it is held; 0: it never is.
        deadline_at: Unix time in seconds after which no call of it starts; None: no such time.
    """

    progress: Progress
    history: list[HistoryPoint]
    step_s: float
    errors: list[ErrorCount]
    slowest: list[SlowJob]
    latency_buckets: dict[int, int]
    age_s: float
    created_at: float
    began_at: float
    ended_at: float | None
    apis: list[str]
    chunks: int
    leased: int
    unread_bytes: int
    max_unread_bytes: int
    deadline_at: float | None


class BatchDetails(Struct, frozen=True, kw_only=True):
    """What only a batch's page shows of it."""

    history: list[HistoryPoint]
    step_s: float
    errors: list[ErrorCount]
    slowest: list[SlowJob]


def ask_details(pipeline: Pipeline, batch_id: str) -> int:
    """Queue the commands whose answers ``read_details`` takes; return how many."""
    names = BatchKeys(batch_id)
    pipeline.hgetall(names.history)
    pipeline.hgetall(names.errors)
    pipeline.zrevrange(names.slowest, 0, _SLOWEST - 1, withscores=True)
    return 3


def read_details(
    record: BatchRecord, latencies: Mapping[int, int], answers: Sequence[Any], now_ms: int
) -> BatchDetails:
    """Return the details of a batch from what Redis answered.

    Args:
        record: The batch.
        latencies: Bucket -> calls.
        answers: Those to the commands of ``ask_details``.
        now_ms: Unix time in milliseconds, on the clock of Redis.
    """
    history, errors, slowest = answers
    step_s = int(history.pop(b"step", 1))
    noted = {int(step): [int(counter) for counter in counters.split()] for step, counters in history.items()}
    step_s, points = _points(record, noted, step_s, latencies, now_ms)
    return BatchDetails(
        history=points,
        step_s=float(step_s),
        errors=error_counts(errors, record.failed),
        slowest=[_slow_job(record.id, name.decode(), latency_us) for name, latency_us in slowest],
    )


def _points(
    record: BatchRecord, noted: Mapping[int, list[int]], step_s: int, latencies: Mapping[int, int], now_ms: int
) -> tuple[int, list[HistoryPoint]]:
    """Return the length of a step, and for each what the counters grew by from its beginning to that of the next one.

    A step at whose beginning nothing was noted saw no commit: they stood as at the next beginning that was.
    """
    began_s = record.created_ms // 1000
    age_s = max(0.0, (record.ended_ms or now_ms) / 1000 - began_s)
    noted_step_s = step_s
    while age_s / step_s >= _STEPS:  # as ``commit.lua`` will do when the next bundle comes
        step_s *= 2
    if step_s > noted_step_s:
        noted = {step * noted_step_s // step_s: noted[step] for step in sorted(noted, reverse=True)}
    last = max(int(age_s // step_s), *noted, 0)
    after = [
        int(sum(calls * mid_us(bucket) for bucket, calls in latencies.items())),
        sum(latencies.values()),
        *(record.succeeded, record.failed, record.calls, record.retries, record.throttled),
    ]
    points = []
    for step in range(last, -1, -1):
        before = noted.get(step, after) if step else [0] * len(after)
        latency_us, timed, *counts = (now - then for now, then in zip(after, before, strict=True))
        points.append(
            HistoryPoint(
                t_s=min((step + 1) * step_s, age_s) if step == last else (step + 1) * step_s,
                **dict(zip(("succeeded", "failed", "calls", "retries", "throttled"), counts, strict=True)),
                latency_s=latency_us / timed / 1e6 if timed > 0 else None,
            )
        )
        after = before
    return step_s, points[::-1]


def error_counts(counted: Mapping[bytes, bytes], failed: int) -> list[ErrorCount]:
    """Return the failed jobs by cause, the most frequent first, from the ledger's counts."""
    jobs = {cause.decode(): int(count) for cause, count in counted.items() if int(count)}
    # What a version recorded that did not count causes is of one that nobody knows.
    unknown = max(0, failed - sum(jobs.values()))
    other = jobs.pop(_OTHER_FIELD, 0) + unknown
    ranked = sorted(jobs.items(), key=lambda item: (-item[1], item[0]))
    rows = [ErrorCount(cause=cause, jobs=count) for cause, count in ranked]
    return [*rows, ErrorCount(cause=OTHER, jobs=other)] if other else rows


def _slow_job(batch_id: str, name: str, latency_us: float) -> SlowJob:
    index, _, job_id = name.partition(" ")
    return SlowJob(index=int(index), id=job_id or assigned_id(batch_id, int(index)), latency_s=latency_us / 1e6)
