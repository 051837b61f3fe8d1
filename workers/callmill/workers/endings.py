"""Endings: what becomes of a call after an attempt, by its verdict: an outcome, or another attempt."""

from __future__ import annotations

from urllib.parse import urljoin

from callmill.config.profiles import ApiProfile
from callmill.jobs.wire import WireOutcome
from callmill.limits import Limiter, Slot
from callmill.workers.backoff import full_jitter_s
from callmill.workers.call import Call, Postponed
from callmill.workers.key_refusals import KeyRefusals
from callmill.workers.request_builder import RequestBuilder
from callmill.workers.throttling import Throttled, ThrottleKind
from callmill.workers.transports.port import Response
from callmill.workers.verdict import Failed, KeyRefused, Redirected, Retryable, Succeeded, Verdict

_MAX_REDIRECTS = 5
_SPENT_QUOTA_S = 3600.0
"""When a quota is asked for again of which the API did not say when it is whole."""


class Endings:
    """Ends the attempts of one API's calls; what they teach about limits and credentials goes to the limiter."""

    def __init__(self, profile: ApiProfile, requests: RequestBuilder, limiter: Limiter) -> None:
        self._retry_policy = profile.retry
        self._keep_headers = tuple(profile.keep_headers)
        self._requests = requests
        self._limiter = limiter
        self._keys = KeyRefusals(profile.name, limiter)

    def of(self, call: Call, slot: Slot, verdict: Verdict, answer: Response | None) -> WireOutcome | Postponed:
        """Return the outcome of a call that is over, or how it goes on."""
        match verdict:
            case Succeeded():
                self._limiter.accepted(slot)
                self._keys.accepted(call, slot)
                call.attempts += 1
                return self._outcome(call, answer)
            case Throttled():
                return self._throttle(slot, verdict)
            case Retryable():
                ending = self._retry(call, verdict)
            case Redirected():
                ending = self._follow(call, verdict)
            case KeyRefused():
                ending = self._keys.refused(call, slot, verdict)
            case Failed():
                ending = verdict
        if isinstance(ending, Postponed):
            return ending
        call.attempts += 1
        return self._outcome(call, answer, ending)

    def _throttle(self, slot: Slot, verdict: Throttled) -> Postponed:
        after_s = verdict.after_s
        if after_s is None and verdict.kind is ThrottleKind.QUOTA:
            after_s = _SPENT_QUOTA_S
        self._limiter.refused(slot, after_s, verdict.reason, learn=verdict.kind is ThrottleKind.RATE)
        return Postponed(verdict.code, verdict.reason, spends_attempt=False, throttled=True)

    def _retry(self, call: Call, verdict: Retryable) -> Postponed | Failed:
        policy = self._retry_policy
        if call.attempts + 1 >= policy.attempts:
            return Failed(verdict.code, verdict.message)
        call.attempts += 1
        delay_s = max(full_jitter_s(call.attempts, policy.base, policy.cap), verdict.after_s)
        return Postponed(verdict.code, verdict.message, delay_s)

    def _follow(self, call: Call, verdict: Redirected) -> Postponed | Failed:
        target = urljoin(self._requests.absolute(call.url), verdict.location)
        if not self._requests.covers(target):
            return Failed("redirect", f"redirected away from the API, to {target}")
        if call.redirects >= _MAX_REDIRECTS:
            return Failed("redirect", f"more than {_MAX_REDIRECTS} redirects")
        call.redirects += 1
        call.url = target
        return Postponed("redirect", target, spends_attempt=False)

    def _outcome(self, call: Call, answer: Response | None, failed: Failed | None = None) -> WireOutcome:
        code, message = (None, None) if failed is None else (failed.code, failed.message)
        if answer is None:
            return outcome_without_answer(call, code, message)
        find = answer.headers.get
        return WireOutcome(
            call.index,
            call.job.id,
            answer.status,
            answer.body,
            {name: value for name in self._keep_headers if (value := find(name)) is not None},
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
