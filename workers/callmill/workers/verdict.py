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
    """Another attempt may succeed, not before ``after_s`` seconds."""

    code: str
    message: str
    after_s: float = 0.0


class KeyRefused(Struct, frozen=True):
    """The API refused the credential, one of several: another one may do."""

    status: int
    message: str


class Redirected(Struct, frozen=True):
    """The answer is elsewhere; asking there is a call of its own."""

    location: str


Verdict: TypeAlias = Succeeded | Failed | Retryable | Throttled | KeyRefused | Redirected

SUCCEEDED = Succeeded()

_FOLLOWED_METHODS = frozenset({"GET", "HEAD"})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_RETRYABLE_FAULTS = frozenset(
    {FaultKind.TIMEOUT, FaultKind.CONNECT, FaultKind.DNS, FaultKind.TLS, FaultKind.RESET, FaultKind.PROTOCOL}
)
_KEY_REFUSALS = frozenset({401, 403})

_LONGEST_RETRY_AFTER_S = 3600.0
"""A call that failed waits no longer for its next attempt, whatever it is asked: it is its batch that waits with it."""


class AnswerRules:
    """What one API's answers mean, by its profile."""

    def __init__(self, profile: ApiProfile) -> None:
        self.retried_statuses = frozenset(profile.retry.statuses)
        self.throttle = ThrottleRules(profile.throttle)
        self.has_key_pool = len(profile.auth) > 1


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
        return Retryable(f"http_{status}", message, min(after_s, _LONGEST_RETRY_AFTER_S))
    if status in _KEY_REFUSALS and rules.has_key_pool:
        return KeyRefused(status, message)
    if status in _REDIRECTS and method in _FOLLOWED_METHODS and "location" in response.headers:
        return Redirected(response.headers["location"])
    return Failed(f"http_{status}", message)


def classify_fault(fault: TransportFault) -> Verdict:
    """Return what a missing answer means."""
    impossible = fault.kind is FaultKind.PROTOCOL and not fault.sent  # the request itself cannot be written as HTTP
    if fault.kind in _RETRYABLE_FAULTS and not impossible:
        return Retryable(fault.kind.value, str(fault))
    return Failed(fault.kind.value, str(fault))
