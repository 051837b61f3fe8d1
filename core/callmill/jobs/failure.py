"""Failure: why a job failed, kept beside its outcome for as long as the batch; what failed alike has one cause."""

from __future__ import annotations

from msgspec import Struct


def cause_of(code: str, status: int | None) -> str:
    """Return what a failure shares with others: the code, and the status where the code does not tell it."""
    return code if status is None or code == f"http_{status}" else f"{code}/{status}"


class Failure(Struct, frozen=True, kw_only=True):
    """One failed outcome of a job.

    Attributes:
        code: Stable machine name, such as ``http_404``, ``timeout`` or ``deadline``.
        message: One sentence for people, cut after 500 characters.
        status: HTTP status of the last answer; None when no answer came.
        answer: The first 512 bytes of the last answer's body, as text; empty when there was none, and for what failed
            after 100 000 other jobs of the batch.
        answer_bytes: How long the whole body was.
        request_id: The id that the API gave the last call, if it sent one.
        attempts: Calls made for it.
        started_at: Unix time in seconds of the last attempt's start; 0 when no call was made.
        latency: Seconds from the last attempt's start to its end.
        failed_at: Unix time in seconds at which the failure was recorded.
    """

    code: str
    message: str
    status: int | None
    answer: str
    answer_bytes: int
    request_id: str | None
    attempts: int
    started_at: float
    latency: float
    failed_at: float

    @property
    def cause(self) -> str:
        """What it shares with others: the code, and the status where the code does not tell it."""
        return cause_of(self.code, self.status)


class FailedJob(Struct, frozen=True, kw_only=True):
    """A job that failed, once or more often.

    Attributes:
        id: Id of the job.
        index: 0-based position of the job in its batch.
        api: The API that was called.
        failed: Whether it counts as failed now; False: it was run again, and has not failed since.
        failures: Its failed outcomes, the newest last; the ten newest of them.
    """

    id: str
    index: int
    api: str
    failed: bool
    failures: list[Failure]

    @property
    def last(self) -> Failure:
        """Its latest failure."""
        return self.failures[-1]


class FailureCause(Struct, frozen=True, kw_only=True):
    """Failed jobs of one batch and one API that failed alike.

    Attributes:
        cause: The code, and the status where the code does not tell it.
        api: The API that was called.
        code: Stable machine name, such as ``http_404``, ``timeout`` or ``deadline``.
        status: HTTP status of the last answers; None when no answer came.
        count: How many jobs.
        first_at: Unix time in seconds of the first of them.
        last_at: Unix time in seconds of the last of them.
        example: The one that failed last.
    """

    cause: str
    api: str
    code: str
    status: int | None
    count: int
    first_at: float
    last_at: float
    example: FailedJob
