"""Endings: what becomes of a call after an attempt, by its verdict: an outcome, or another attempt."""

from __future__ import annotations

from collections.abc import Callable

from callmill.config.profiles import ApiProfile
from callmill.config.redaction import without_secrets
from callmill.jobs.wire import WireOutcome
from callmill.limits import Limiter, Slot
from callmill.workers.backoff import full_jitter_s
from callmill.workers.breaker_gate import BreakerGate
from callmill.workers.call import Call, Postponed
from callmill.workers.hold_gate import HoldGate
from callmill.workers.key_refusals import KeyRefusals
from callmill.workers.request_builder import RequestBuilder
from callmill.workers.throttle_bounds import ThrottleBounds
from callmill.workers.throttling import Throttled, ThrottleKind
from callmill.workers.transports.port import Response
from callmill.workers.verdict import Failed, KeyRefused, Redirected, Retryable, Succeeded, Verdict

_MAX_REDIRECTS = 5
_LEAST_ATTEMPTS_TO_FOLLOW = 2
"""Attempts that stop redirects, at least: a call that was given back between two redirects has spent one already."""

_SHOWN_LENGTH = 300
_SPENT_QUOTA_S = 3600.0
"""When a quota is asked for again of which the API did not say when it is whole."""


class Endings:
    """Ends the attempts of one API's calls; what they teach about limits and credentials goes to the limiter."""

    def __init__(
        self,
        profile: ApiProfile,
        requests: RequestBuilder,
        limiter: Limiter,
        breaker: BreakerGate,
        holds: HoldGate,
        *,
        now: Callable[[], float],
    ) -> None:
        self._retry_policy = profile.retry
        self._base_url = profile.base_url
        self._keep_headers = tuple(profile.keep_headers)
        self._requests = requests
        self._limiter = limiter
        self._breaker = breaker
        self._keys = KeyRefusals(profile.name, limiter, holds)
        self._throttles = ThrottleBounds(profile, now)

    def of(
        self, call: Call, slot: Slot, verdict: Verdict, answer: Response | None, *, spared: bool
    ) -> WireOutcome | Postponed:
        """Return a call's outcome, or how it continues; ``spared``: its failure spends no attempt."""
        match verdict:
            case Succeeded():
                self._limiter.accepted(slot)
                self._keys.accepted(call, slot)
                call.attempts += 1
                return self._outcome(call, slot, answer)
            case Throttled():
                ending = self._throttle(call, slot, verdict)
            case Retryable():
                ending = self._retry(call, verdict, spared=spared)
            case Redirected():
                ending = self._follow(call, verdict)
            case KeyRefused():
                ending = self._keys.refused(call, slot, verdict)
            case Failed():
                ending = self._fail(slot, verdict, answer)
        if isinstance(ending, Postponed):
            return ending
        call.attempts += 1
        return self._outcome(call, slot, answer, ending)

    def _fail(self, slot: Slot, verdict: Failed, answer: Response | None) -> Failed:
        if answer is not None:  # whatever the API thinks of the call, its limits took it
            self._limiter.accepted(slot)
        return verdict

    def _throttle(self, call: Call, slot: Slot, verdict: Throttled) -> Postponed | Failed:
        after_s = verdict.after_s
        if after_s is None and verdict.kind is ThrottleKind.QUOTA:
            after_s = _SPENT_QUOTA_S
        self._limiter.refused(slot, after_s, verdict.reason, cause=verdict.kind.value)
        again = Postponed(verdict.code, verdict.reason, spends_attempt=False, throttled=True)
        return self._throttles.refused(call, verdict.reason) or again

    def _retry(self, call: Call, verdict: Retryable, *, spared: bool) -> Postponed | Failed:
        policy = self._retry_policy
        if verdict.not_repeated:
            return Failed(verdict.code, f"{verdict.message}; {verdict.not_repeated}")
        if spared:
            delay_s = max(self._breaker.wait_s(), verdict.after_s)
            return Postponed(verdict.code, verdict.message, delay_s, spends_attempt=False)
        if call.attempts + 1 >= policy.attempts:
            self._breaker.settled(call)
            return Failed(verdict.code, verdict.message)
        call.attempts += 1
        self._breaker.spent(call)
        delay_s = max(full_jitter_s(call.attempts, policy.base, policy.cap), verdict.after_s)
        return Postponed(verdict.code, verdict.message, delay_s)

    def _follow(self, call: Call, verdict: Redirected) -> Postponed | Failed:
        target = self._requests.redirected(call.url, verdict.location)
        shown = _shown(without_secrets(target))  # in this order: of a secret that was cut, nobody knows the rest
        if verdict.not_followed:
            return Failed(verdict.code, f"{verdict.message} to {shown}, not followed: {verdict.not_followed}")
        if not self._requests.covers(target):
            return Failed(
                "redirect",
                f"redirected away from the API, to {shown}; calls and credentials only go to URLs under its base_url, "
                f"{self._base_url}: change it in the profile if the API has moved",
            )
        if call.redirects >= _MAX_REDIRECTS:
            return Failed("redirect", f"more than {_MAX_REDIRECTS} redirects, the last one to {shown}")
        if call.attempts >= max(self._retry_policy.attempts, _LEAST_ATTEMPTS_TO_FOLLOW):
            return Failed("redirect", f"redirected again after its last attempt, to {shown}")
        call.redirects += 1
        call.url = target
        return Postponed("redirect", shown, spends_attempt=False)

    def _outcome(self, call: Call, slot: Slot, answer: Response | None, failed: Failed | None = None) -> WireOutcome:
        code, message = (None, None) if failed is None else (failed.code, failed.message)
        if answer is None:
            return outcome_without_answer(call, code, message)
        return WireOutcome(
            call.index,
            call.job.id,
            answer.status,
            answer.body,
            self._requests.masks[slot.key].kept(answer.headers, self._keep_headers),
            code,
            message,
            call.attempts,
            call.started_ms,
            call.latency_us,
        )


def _shown(url: str) -> str:
    """Return a URL for messages: shortened, without credentials, and without the query, which may hold one."""
    scheme, separator, rest = url[:_SHOWN_LENGTH].partition("://")
    if not separator:
        scheme, rest = "", url[:_SHOWN_LENGTH]
    path, query, _ = rest.partition("?")
    host, slash, path = path.partition("/")
    shown = f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}{'?...' if query else ''}"
    return "".join(character if character.isprintable() else "?" for character in shown)


def outcome_without_answer(call: Call, code: str | None, message: str | None) -> WireOutcome:
    """Return the outcome of a call that got no answer."""
    return WireOutcome(
        call.index, call.job.id, None, b"", {}, code, message, call.attempts, call.started_ms, call.latency_us
    )


def outcome_too_late(call: Call) -> WireOutcome:
    """Return the outcome of a call that may not start any more."""
    return outcome_without_answer(call, "deadline", "its deadline passed before it could start")
