"""FailureFilter: which failed jobs somebody means: ``status=500``, ``status=5xx,api=openai``, ``code=timeout``."""

from __future__ import annotations

import re
from collections.abc import Callable

from callmill.errors import UsageError
from callmill.jobs.failure import FailedJob

_FIELDS: dict[str, Callable[[FailedJob], str | None]] = {
    "api": lambda job: job.api,
    "cause": lambda job: job.last.cause,
    "code": lambda job: job.last.code,
    "id": lambda job: job.id,
    "status": lambda job: None if job.last.status is None else str(job.last.status),
}
_STATUS = re.compile(r"[1-9](?:\d\d|xx)|none")


class FailureFilter:
    """Conditions on failed jobs, all of which must hold. What they look at is the job's latest failure.

    Args:
        text: ``field=value``, several with commas between them; none: every failed job.
        up_to_ms: Only jobs that failed by this Unix time in milliseconds on Redis's clock, and whose position in the
            batch is known; None: all.

    Raises:
        UsageError: A condition is none, or its field or status is unknown.
    """

    def __init__(self, text: str, *, up_to_ms: int | None = None) -> None:
        self._conditions = [_condition(part.strip()) for part in text.split(",")] if text.strip() else []
        if up_to_ms is not None:
            self._conditions.append(lambda job: job.index >= 0 and job.last.failed_at <= up_to_ms / 1e3)

    def __bool__(self) -> bool:
        return bool(self._conditions)

    def __call__(self, job: FailedJob) -> bool:
        """Say whether the job is meant."""
        return all(condition(job) for condition in self._conditions)


ALL = FailureFilter("")
"""Every failed job."""


def _condition(text: str) -> Callable[[FailedJob], bool]:
    field, equals, value = (part.strip() for part in text.partition("="))
    known = ", ".join(_FIELDS)
    if not equals or not field or not value:
        raise UsageError(f"where: {text!r} is no condition: write field=value, field one of {known}")
    if field not in _FIELDS:
        raise UsageError(f"where: unknown field {field!r}: the fields are {known}")
    read = _FIELDS[field]
    if field == "status":
        value = value.lower()
        if not _STATUS.fullmatch(value):
            raise UsageError(f"where: status: {value!r} is no status: write 500, 5xx, or none where no answer came")
        if value == "none":
            return lambda job: read(job) is None
        if value.endswith("xx"):
            return lambda job: (read(job) or "")[:1] == value[0]
    return lambda job: read(job) == value
