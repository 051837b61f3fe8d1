"""What becomes of a call, as it is recorded: every outcome of a call is built here."""

from __future__ import annotations

from callmill.jobs.wire import WireOutcome
from callmill.workers.call import Call
from callmill.workers.transports.port import Response


def outcome_of_answer(
    call: Call, answer: Response, headers: dict[str, str], code: str | None, message: str | None
) -> WireOutcome:
    """Return the outcome of a call that got an answer, with those of its headers that are kept."""
    return WireOutcome(
        call.index,
        call.job.id,
        answer.status,
        answer.body,
        headers,
        code,
        message,
        call.attempts,
        call.started_ms,
        call.latency_us,
    )


def outcome_without_answer(call: Call, code: str | None, message: str | None) -> WireOutcome:
    """Return the outcome of a call that got no answer."""
    return WireOutcome(
        call.index, call.job.id, None, b"", {}, code, message, call.attempts, call.started_ms, call.latency_us
    )


def outcome_too_late(call: Call) -> WireOutcome:
    """Return the outcome of a call that may not start any more."""
    return outcome_without_answer(call, "deadline", "its deadline passed before it could start")
