"""Limits as people write them: ``500/minute``, ``200000 tokens/minute``, ``60/minute per key``, ``64 concurrent``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum

from msgspec import Struct

_WINDOWS_S = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_ABBREVIATIONS = {"s": "second", "sec": "second", "m": "minute", "min": "minute", "h": "hour", "d": "day"}
_SCOPE = r"(?:\s+per\s+(?P<scope>key|model))?\s*$"
_RATE = re.compile(
    r"^\s*(?P<amount>\d[\d_]*)\s*(?P<unit>requests?|calls?|(?:(?:in|out)put\s+)?tokens?)?"
    r"\s*(?:/|\s+per\s+)\s*(?P<window>[a-z]+?)s?" + _SCOPE
)
_CONCURRENT = re.compile(r"^\s*(?P<amount>\d[\d_]*)\s+concurrent" + _SCOPE)


_LONGEST = 100


class Unit(StrEnum):
    """What a limit counts."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    """Of the request and of the answer together."""
    INPUT_TOKENS = "input tokens"
    OUTPUT_TOKENS = "output tokens"
    CONCURRENT = "concurrent"

    @property
    def is_tokens(self) -> bool:
        """Whether the cost of a call is known for sure only from its answer."""
        return self in {Unit.TOKENS, Unit.INPUT_TOKENS, Unit.OUTPUT_TOKENS}


class Scope(StrEnum):
    """What a limit holds for: all calls of the API together, or those of each credential or model by itself."""

    API = "api"
    KEY = "key"
    MODEL = "model"


class Enforcer(StrEnum):
    """How the API's server counts."""

    BUCKET = "bucket"
    SLIDING = "sliding"
    FIXED = "fixed"
    UNKNOWN = "unknown"


class LimitSpec(Struct, frozen=True):
    """One limit of an API.

    Attributes:
        amount: How many of ``unit`` the window takes, or how many calls may be in flight; 0: see AUTO, NONE, LEARNED.
        unit: What is counted.
        window_s: Length of the window in seconds; 0 for ``concurrent``.
        scope: What it holds for.
    """

    amount: int
    unit: Unit
    window_s: int
    scope: Scope = Scope.API

    def __str__(self) -> str:
        if not self.amount:
            return "none" if self.unit is Unit.CONCURRENT else "auto" if self.window_s else "a learned pace"
        suffix = "" if self.scope is Scope.API else f" per {self.scope.value}"
        if self.unit is Unit.CONCURRENT:
            return f"{self.amount} concurrent{suffix}"
        window = next(name for name, seconds in _WINDOWS_S.items() if seconds == self.window_s)
        unit = "" if self.unit is Unit.REQUESTS else f" {self.unit.value}"
        return f"{self.amount}{unit}/{window}{suffix}"


AUTO = LimitSpec(0, Unit.REQUESTS, 1)
"""Nobody knows the limit: the rate is found by trying."""

NONE = LimitSpec(0, Unit.CONCURRENT, 0)
"""There is no limit: none is learned either."""

LEARNED = LimitSpec(0, Unit.REQUESTS, 0)
"""A rate that nobody wrote down and the API's refusals showed; nobody writes this."""

LEARNED_OF_KEY = LimitSpec(0, Unit.REQUESTS, 0, Scope.KEY)


def parse_limit(text: str) -> LimitSpec:
    """Read one limit.

    Raises:
        ValueError: The text is no limit; the message shows the forms that are.
    """
    lowered = text.lower() if len(text) <= _LONGEST else ""
    if (word := lowered.strip()) in {"auto", "none"}:
        return AUTO if word == "auto" else NONE
    if match := _CONCURRENT.match(lowered):
        return LimitSpec(_positive(text, match["amount"]), Unit.CONCURRENT, 0, Scope(match["scope"] or "api"))
    match = _RATE.match(lowered)
    window = match and _ABBREVIATIONS.get(match["window"], match["window"])
    if match is None or window not in _WINDOWS_S:
        raise ValueError(
            f"{text!r} is no limit; write '500/minute', '10/second', '200000 tokens/minute', '10000/day', "
            "'30000 input tokens/minute', '60/minute per key', '100/minute per model', '64 concurrent', 'auto' "
            "or 'none'"
        )
    return LimitSpec(
        _positive(text, match["amount"]), _unit(match["unit"] or ""), _WINDOWS_S[window], Scope(match["scope"] or "api")
    )


def check_alone(specs: Iterable[LimitSpec]) -> None:
    """Check that ``none`` stands alone.

    Raises:
        ValueError: It does not.
    """
    every = list(specs)
    if NONE in every and len(every) > 1:
        raise ValueError("'none' says that there is no limit; leave it out, or leave the others out")


def _unit(text: str) -> Unit:
    if "token" not in text:
        return Unit.REQUESTS
    return {"in": Unit.INPUT_TOKENS, "ou": Unit.OUTPUT_TOKENS}.get(text[:2], Unit.TOKENS)


def _positive(text: str, digits: str) -> int:
    amount = int(digits.replace("_", ""))
    if amount < 1:
        raise ValueError(f"{text!r}: a limit is at least 1; to stop an API, pause it")
    return amount
