"""Limits as people write them: ``500/minute``, ``200000 tokens/minute``, ``64 concurrent``."""

from __future__ import annotations

import re
from enum import StrEnum

from msgspec import Struct

_WINDOWS_S = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_ABBREVIATIONS = {"s": "second", "sec": "second", "m": "minute", "min": "minute", "h": "hour", "d": "day"}
_RATE = re.compile(
    r"^\s*(?P<amount>\d[\d_]*)\s*(?P<unit>requests?|calls?|tokens?)?\s*(?:/|\s+per\s+)\s*(?P<window>[a-z]+?)s?\s*$"
)
_CONCURRENT = re.compile(r"^\s*(?P<amount>\d[\d_]*)\s+concurrent\s*$")


class Unit(StrEnum):
    """What a limit counts."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    CONCURRENT = "concurrent"


class Enforcer(StrEnum):
    """How the API's server counts."""

    BUCKET = "bucket"
    SLIDING = "sliding"
    FIXED = "fixed"
    UNKNOWN = "unknown"


class LimitSpec(Struct, frozen=True):
    """One limit of an API.

    Attributes:
        amount: How many of ``unit`` the window takes, or how many calls may be in flight.
        unit: What is counted.
        window_s: Length of the window in seconds; 0 for ``concurrent``.
    """

    amount: int
    unit: Unit
    window_s: int

    def __str__(self) -> str:
        if self.unit is Unit.CONCURRENT:
            return f"{self.amount} concurrent"
        window = next(name for name, seconds in _WINDOWS_S.items() if seconds == self.window_s)
        return f"{self.amount}/{window}" if self.unit is Unit.REQUESTS else f"{self.amount} tokens/{window}"


def parse_limit(text: str) -> LimitSpec:
    """Read one limit.

    Raises:
        ValueError: The text is no limit; the message shows the forms that are.
    """
    lowered = text.lower()
    if match := _CONCURRENT.match(lowered):
        return LimitSpec(_positive(text, match["amount"]), Unit.CONCURRENT, 0)
    match = _RATE.match(lowered)
    window = match and _ABBREVIATIONS.get(match["window"], match["window"])
    if match is None or window not in _WINDOWS_S:
        raise ValueError(
            f"{text!r} is no limit; write '500/minute', '10/second', '200000 tokens/minute', '10000/day' "
            "or '64 concurrent'"
        )
    unit = Unit.TOKENS if (match["unit"] or "").startswith("token") else Unit.REQUESTS
    return LimitSpec(_positive(text, match["amount"]), unit, _WINDOWS_S[window])


def _positive(text: str, digits: str) -> int:
    amount = int(digits.replace("_", ""))
    if amount < 1:
        raise ValueError(f"{text!r}: a limit is at least 1; to stop an API, pause it")
    return amount
