"""Verdict: what an answer or a fault means for the call. Pure; the table is data."""

from __future__ import annotations

from http import HTTPStatus
from typing import TypeAlias

from msgspec import Struct

from callmill.workers.retry_after import retry_after_s
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


class Throttled(Struct, frozen=True):
    """The API wants fewer calls: the lane pauses, no attempt is spent. ``after_s`` is None when it did not say."""

    after_s: float | None


class Redirected(Struct, frozen=True):
    """The answer is elsewhere; asking there is a call of its own."""

    location: str


Verdict: TypeAlias = Succeeded | Failed | Retryable | Throttled | Redirected

SUCCEEDED = Succeeded()

_FOLLOWED_METHODS = frozenset({"GET", "HEAD"})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_RETRYABLE_FAULTS = frozenset(
    {FaultKind.TIMEOUT, FaultKind.CONNECT, FaultKind.DNS, FaultKind.TLS, FaultKind.RESET, FaultKind.PROTOCOL}
)
_PHRASES = {status.value: status.phrase for status in HTTPStatus}


def classify_response(method: str, response: Response, retried_statuses: frozenset[int]) -> Verdict:
    """Return what an answer means; ``retried_statuses`` come from the API's profile."""
    status = response.status
    if 200 <= status < 300:
        return SUCCEEDED
    if status == 429:
        return Throttled(retry_after_s(response.headers))
    message = f"{status} {_PHRASES.get(status, '')}".strip()
    if status in retried_statuses:
        return Retryable(f"http_{status}", message, retry_after_s(response.headers) or 0.0)
    if status in _REDIRECTS and method in _FOLLOWED_METHODS and "location" in response.headers:
        return Redirected(response.headers["location"])
    return Failed(f"http_{status}", message)


def classify_fault(fault: TransportFault) -> Verdict:
    """Return what a missing answer means."""
    impossible = fault.kind is FaultKind.PROTOCOL and not fault.sent  # the request itself cannot be written as HTTP
    if fault.kind in _RETRYABLE_FAULTS and not impossible:
        return Retryable(fault.kind.value, str(fault))
    return Failed(fault.kind.value, str(fault))
