"""Throttling: whether an answer says that the API wants fewer calls, of which kind, and for how long. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from http import HTTPStatus
from typing import Any

from msgspec import Struct

from callmill.config.limit_spec import Unit
from callmill.config.redaction import without_secrets
from callmill.config.throttle_policy import ThrottlePolicy
from callmill.jobs.json_pointers import JsonPointers
from callmill.limits.feedback import Feedback, Observation
from callmill.limits.headers import ABSURD_RETRY_AFTER_S, LONGEST_RETRY_AFTER_S
from callmill.workers.retry_info import with_body
from callmill.workers.transports.port import Response

QUOTA_FROM_S = 600.0
"""What takes longer than this to come back is no rate: limits per second and minute are whole again sooner."""

_LONGEST_BODY = 65_536
"""A body that is larger is an answer, not a refusal."""

_LONGEST_TEXT = 4096
_PROBLEM = "application/problem+json"
_TYPE = "/type"
_PROBLEM_TYPES = ("#quota-exceeded", "#temporary-reduced-capacity", "#abnormal-usage-detected")
_PHRASES = {status.value: status.phrase for status in HTTPStatus} | {529: "Overloaded"}
_SPANS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


class ThrottleKind(StrEnum):
    """What there was too much of."""

    UNKNOWN = ""
    """The answer does not say."""
    RATE = "rate"
    """Calls, or tokens, in too short a time."""
    QUOTA = "quota"
    """A quota is spent, or the money is: other credentials may have theirs."""
    CONCURRENCY = "concurrency"
    """Calls at once."""


class Throttled(Struct, frozen=True):
    """The API wants fewer calls: no attempt is spent.

    Attributes:
        after_s: Seconds until it may be asked again; None when it did not say.
        reason: What people are told.
        kind: What there was too much of.
        code: The outcome's code, should it come to that.
    """

    after_s: float | None
    reason: str = "429 Too Many Requests"
    kind: ThrottleKind = ThrottleKind.UNKNOWN
    code: str = "http_429"


_SHIPPED: tuple[tuple[ThrottleKind, str, str], ...] = (
    (ThrottleKind.QUOTA, "/error/code", "insufficient_quota"),
    (ThrottleKind.QUOTA, "/error/type", "insufficient_quota"),
    (ThrottleKind.CONCURRENCY, "/error/message", "concurren"),
    (ThrottleKind.CONCURRENCY, "/message", "concurren"),
    *((ThrottleKind.RATE, _TYPE, suffix) for suffix in _PROBLEM_TYPES),
)
"""What is known without a profile, of answers that are refusals by their status or by a profile."""


class ThrottleRules:
    """One profile's ``throttle`` table, ready to be held against answers; what is first in it holds."""

    def __init__(self, policy: ThrottlePolicy) -> None:
        self.statuses = frozenset(policy.statuses)
        tables = (
            (ThrottleKind.QUOTA, policy.quota),
            (ThrottleKind.CONCURRENCY, policy.concurrency),
            (ThrottleKind.RATE, policy.rate),
        )
        own = [(kind, at, text) for kind, table in tables for at, texts in table.items() for text in texts]
        self._own = _Texts(own)
        self._all = _Texts([*own, *_SHIPPED])
        self._problem = _Texts([rule for rule in _SHIPPED if rule[1] == _TYPE])

    def may_throttle(self, response: Response) -> bool:
        """Say whether the answer is worth a look: nearly none is."""
        return response.status == 429 or response.status in self.statuses or _is_problem(response)

    def throttling(self, response: Response, feedback: Feedback | None) -> Throttled | None:
        """Return what the answer says; None when it is no matter of limits."""
        status = response.status
        if not self.may_throttle(response):
            return None
        listed = status in self.statuses
        texts = self._own if status < 300 else self._all if listed or status == 429 else self._problem
        found = texts.found_in(response.body)
        feedback = with_body(feedback, response.body)
        spent = None if feedback is None or status < 300 else _spent(feedback)
        asks = status >= 300 and feedback is not None and feedback.retry_after_s is not None
        if status == 429 or found is not None or (listed and (asks or spent is not None)):
            return _throttled(status, found, spent, feedback)
        return None


class _Texts:
    """Texts to be found in bodies, with where and of which kind."""

    def __init__(self, rules: list[tuple[ThrottleKind, str, str]]) -> None:
        self._rules = [(kind, pointer, text, text.casefold()) for kind, pointer, text in rules]
        self._pointers = JsonPointers({pointer: pointer for _, pointer, _ in rules})

    def found_in(self, body: bytes) -> tuple[ThrottleKind, str] | None:
        """Return the kind and the text of the first rule that the body satisfies."""
        if not self._rules or not 0 < len(body) <= _LONGEST_BODY:
            return None
        values = {pointer: _folded(value) for pointer, value in self._pointers.read(body).items()}
        for kind, pointer, text, folded in self._rules:
            value = values.get(pointer)
            if value is not None and (folded in value if isinstance(value, str) else folded == str(value)):
                return kind, text
        return None


def status_line(status: int) -> str:
    """Return a status as people know it: ``404 Not Found``."""
    return f"{status} {_PHRASES.get(status, '')}".strip()


def span(seconds: float) -> str:
    """Write a time in the largest unit of which it has two, so that it is told to within a half."""
    size_s, unit = next((size for size in _SPANS if seconds >= 2 * size[0]), _SPANS[-1])
    return f"{seconds / size_s:.0f} {unit}"


def _folded(value: Any) -> str | int | None:
    if isinstance(value, str):
        return value[:_LONGEST_TEXT].casefold()
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 64 else None


def _is_problem(response: Response) -> bool:
    headers: Mapping[str, str] = response.headers
    return response.status >= 400 and headers.get("content-type", "").startswith(_PROBLEM)


def _spent(feedback: Feedback) -> Observation | None:
    """Return the limit of which nothing remains; of several, the one that comes back last."""
    spent = [seen for seen in feedback.observations if seen.remaining == 0]
    return max(spent, key=lambda seen: -1.0 if seen.reset_s is None else seen.reset_s, default=None)


def _throttled(
    status: int, found: tuple[ThrottleKind, str] | None, spent: Observation | None, feedback: Feedback | None
) -> Throttled:
    after_s, told = _wait(spent, feedback)
    kind = ThrottleKind.UNKNOWN if found is None else found[0]
    if found is None and spent is not None:
        kind = ThrottleKind.CONCURRENCY if spent.unit is Unit.CONCURRENT else ThrottleKind.RATE
    if kind in {ThrottleKind.UNKNOWN, ThrottleKind.RATE} and after_s is not None and after_s >= QUOTA_FROM_S:
        kind = ThrottleKind.QUOTA
    details = [detail for detail in ("" if found is None else found[1], told) if detail]
    reason = ": ".join([status_line(status), ", ".join(details)] if details else [status_line(status)])
    return Throttled(after_s, without_secrets(reason), kind, f"http_{status}")


def _wait(spent: Observation | None, feedback: Feedback | None) -> tuple[float | None, str]:
    """Return how long to wait, and how that is told; Retry-After goes before what headers say of limits."""
    left = "" if spent is None else f"remaining 0 of {spent.name}"
    if feedback is not None and feedback.retry_after_s is not None:
        asked_s = feedback.retry_after_s
        if feedback.absurd:
            return asked_s, f"asked for more than {span(LONGEST_RETRY_AFTER_S)}, tried again in {span(asked_s)}"
        return asked_s, left or (f"asked to wait {span(asked_s)}" if asked_s >= QUOTA_FROM_S else "")
    if spent is None or spent.reset_s is None:
        return None, left
    told = f"{left}, resets in {span(spent.reset_s)}"
    return (spent.reset_s if spent.reset_s <= LONGEST_RETRY_AFTER_S else ABSURD_RETRY_AFTER_S), told
