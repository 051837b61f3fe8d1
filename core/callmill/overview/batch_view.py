"""BatchView: one batch as its page shows it; what it costs to read does not grow with its jobs."""

from __future__ import annotations

from msgspec import Struct

from callmill.overview.progress import Progress


class HistoryPoint(Struct, frozen=True, kw_only=True):
    """What happened within one step of a batch's time; the points sum up to the batch's counters, exactly.

    Attributes:
        t_s: When the step ended, in seconds since the batch was submitted.
        succeeded: Jobs recorded as succeeded.
        failed: Jobs recorded as failed, less those run again: below 0 where more were run again than failed.
        calls: HTTP calls made.
        retries: Calls repeated after a failure.
        throttled: Calls that the API answered with 429.
        latency_s: Mean latency of the calls that ended with an outcome; None where there was none.
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
        created_at: Unix time in seconds, as is ``ended_at``.
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
    ended_at: float | None
    apis: list[str]
    chunks: int
    leased: int
    unread_bytes: int
    max_unread_bytes: int
    deadline_at: float | None
