"""What becomes of a call, as it is recorded: every outcome of a call is built here."""

from __future__ import annotations

from collections.abc import Iterable

from callmill.jobs.wire import WireOutcome
from callmill.workers.answer_mask import AnswerMask
from callmill.workers.call import Call
from callmill.workers.transports.port import Response

_PLAIN_JSON = frozenset({"application/json", "application/json; charset=utf-8", "application/json;charset=utf-8"})


class KeptHeaders:
    """Chooses the headers of answers that outcomes keep.

    They are those that the profile names, and what a reader needs to understand the body: its coding, if it is still
    encoded, and its content type, unless that is the usual one.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)
        self._lacks_type = "content-type" not in self._names

    def of(self, answer: Response, mask: AnswerMask) -> dict[str, str]:
        """Return the headers to keep, masked."""
        kept = mask.kept(answer.headers, self._names)
        if answer.encoding:
            kept["content-encoding"] = answer.encoding
        if self._lacks_type and answer.body:
            kept |= {
                name: value
                for name, value in mask.kept(answer.headers, ("content-type",)).items()
                if value.lower() not in _PLAIN_JSON
            }
        return kept


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
