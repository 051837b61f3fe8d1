"""Verdict: what an answer or a fault means for the call. Pure; the table is data."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from callmill.config.api_profile import ApiProfile
from callmill.limits.feedback import Feedback
from callmill.workers.throttling import Throttled, ThrottleRules, status_line
from callmill.workers.transports.port import FaultKind, Response, TransportFault


class Succeeded(Struct, frozen=True):
    """The call is done."""


class Failed(Struct, frozen=True):
    """The call failed for good."""

    code: str
    message: str


class Retryable(Struct, frozen=True):
    """Temporary trouble: another attempt may succeed, but not before ``after_s`` seconds.

    ``not_repeated`` says why there is none if the API may have executed the call; empty: there may be one.
    """

    code: str
    message: str
    after_s: float = 0.0
    not_repeated: str = ""


class KeyRefused(Struct, frozen=True):
    """The API refused the credential, one of several: another one may do."""

    status: int
    message: str


class Redirected(Struct, frozen=True):
    """The answer is elsewhere; asking there is a call of its own.

    ``not_followed`` says why the call does not go there; empty: it may.
    """

    code: str
    message: str
    location: str
    not_followed: str = ""


Verdict: TypeAlias = Succeeded | Failed | Retryable | Throttled | KeyRefused | Redirected

SUCCEEDED = Succeeded()

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SAME_METHOD = frozenset({307, 308})
"""Redirects that keep method and body. With others, clients may turn a POST into a GET: a different call."""

_READING = frozenset({"GET", "HEAD"})
_RETRYABLE_FAULTS = frozenset(
    {FaultKind.TIMEOUT, FaultKind.CONNECT, FaultKind.DNS, FaultKind.TLS, FaultKind.RESET, FaultKind.PROTOCOL}
)
_GATEWAY_TIMEOUT = 504
"""What a gateway says of a call that it forwarded and got no answer to: someone else's time-out."""

_KEY_REFUSALS = frozenset({401, 403})

_LONGEST_RETRY_AFTER_S = 3600.0
"""A call that failed waits no longer for its next attempt, whatever it is asked: it is its batch that waits with it."""


class AnswerRules:
    """What one API's answers mean, by its profile."""

    def __init__(self, profile: ApiProfile) -> None:
        self.may_repeat = profile.idempotency.covers
        header = profile.idempotency_header
        honours = f'set idempotency = "by-key" if {profile.name} honours {header}, or ' if header else ""
        self._remedy = f'{honours}set idempotency = "always" if repeating the call does no harm'
        self.retried_statuses = frozenset(profile.retry.statuses)
        self.throttle = ThrottleRules(profile.throttle)
        self.has_key_pool = len(profile.auth) > 1
        self._follows_redirects = profile.follow_redirects

    def why_not_followed(self, method: str, status: int) -> str:
        """Say why a redirect is not followed; empty if it may be."""
        if not self._follows_redirects:
            return "the API's profile has follow_redirects = false"
        if status in _SAME_METHOD or method in _READING:
            return ""
        return f"a {status} does not ask to repeat the {method} there; if it should be, give the job that URL"

    def executed_perhaps(self, method: str) -> str:
        """Say why a call that the API may have executed is not repeated, and how to allow it."""
        return f"not retried because the API may have executed the {method}; {self._remedy}"


def classify_response(method: str, response: Response, feedback: Feedback | None, rules: AnswerRules) -> Verdict:
    """Return what an answer means; ``feedback`` is what its headers say about limits."""
    status = response.status
    succeeded = 200 <= status < 300
    if succeeded and status not in rules.throttle.statuses:
        return SUCCEEDED
    if (throttled := rules.throttle.throttling(response, feedback)) is not None:
        return throttled
    return SUCCEEDED if succeeded else _refusal(method, response, feedback, rules)


def _refusal(method: str, response: Response, feedback: Feedback | None, rules: AnswerRules) -> Verdict:
    status, message = response.status, status_line(response.status)
    if status in rules.retried_statuses:
        after_s = 0.0 if feedback is None else feedback.retry_after_s or 0.0
        if status == _GATEWAY_TIMEOUT and not rules.may_repeat(method):
            return Retryable(f"http_{status}", message, not_repeated=rules.executed_perhaps(method))
        return Retryable(f"http_{status}", message, min(after_s, _LONGEST_RETRY_AFTER_S))
    if status in _KEY_REFUSALS and rules.has_key_pool:
        return KeyRefused(status, message)
    if status in _REDIRECTS and "location" in response.headers:
        why_not = rules.why_not_followed(method, status)
        return Redirected(f"http_{status}", message, response.headers["location"], why_not)
    return Failed(f"http_{status}", message)


def classify_fault(method: str, fault: TransportFault, rules: AnswerRules) -> Verdict:
    """Return what a missing answer means."""
    impossible = fault.kind is FaultKind.PROTOCOL and not fault.sent  # the request itself cannot be written as HTTP
    if fault.kind in _RETRYABLE_FAULTS and not impossible:
        if fault.sent and not rules.may_repeat(method):
            return Retryable(fault.kind.value, str(fault), not_repeated=rules.executed_perhaps(method))
        return Retryable(fault.kind.value, str(fault))
    return Failed(fault.kind.value, str(fault))
