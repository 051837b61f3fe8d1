"""Latency as people write it: ``20ms``, ``10ms-50ms``, ``lognormal:50ms,p99=400ms``."""

from __future__ import annotations

import math
import re
from enum import StrEnum
from random import Random

from msgspec import Struct

_UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_DURATION = re.compile(r"^(?P<number>\d+(?:\.\d+)?)(?P<unit>us|ms|s)$")
_LOGNORMAL = re.compile(r"^lognormal:(?P<median>[^,]+),p99=(?P<p99>.+)$")
_P99_SIGMAS = 2.3263478740408408
"""The 99th percentile of the standard normal distribution."""


class LatencyShape(StrEnum):
    """The distribution that latencies are drawn from."""

    CONSTANT = "constant"
    UNIFORM = "uniform"
    LOGNORMAL = "lognormal"


class Latency(Struct, frozen=True):
    """A distribution of latencies.

    Attributes:
        shape: The distribution.
        low_s: Seconds: the constant, the least of a uniform one, the median of a log-normal one.
        high_s: Seconds: the constant, the most of a uniform one, the 99th percentile of a log-normal one.
    """

    shape: LatencyShape = LatencyShape.CONSTANT
    low_s: float = 0.0
    high_s: float = 0.0

    def draw_s(self, random: Random) -> float:
        """Draw one latency in seconds."""
        if self.shape is LatencyShape.CONSTANT:
            return self.low_s
        if self.shape is LatencyShape.UNIFORM:
            return random.uniform(self.low_s, self.high_s)
        return random.lognormvariate(math.log(self.low_s), math.log(self.high_s / self.low_s) / _P99_SIGMAS)

    def __str__(self) -> str:
        if self.shape is LatencyShape.CONSTANT:
            return _duration_text(self.low_s)
        if self.shape is LatencyShape.UNIFORM:
            return f"{_duration_text(self.low_s)}-{_duration_text(self.high_s)}"
        return f"lognormal:{_duration_text(self.low_s)},p99={_duration_text(self.high_s)}"


def parse_latency(text: str) -> Latency:
    """Read a latency.

    Raises:
        ValueError: The text is no latency; the message shows the forms that are.
    """
    compact = text.lower().replace(" ", "")
    if match := _LOGNORMAL.match(compact):
        low_s, high_s = parse_duration_s(match["median"]), parse_duration_s(match["p99"])
        if not 0 < low_s <= high_s:
            raise ValueError(f"{text!r}: the median is above 0 and the p99 is not below it")
        return Latency(LatencyShape.LOGNORMAL, low_s, high_s)
    low, dash, high = compact.partition("-")
    low_s = parse_duration_s(low)
    if not dash:
        return Latency(LatencyShape.CONSTANT, low_s, low_s)
    high_s = parse_duration_s(high)
    if high_s < low_s:
        raise ValueError(f"{text!r}: the second duration is below the first one")
    return Latency(LatencyShape.UNIFORM, low_s, high_s)


def parse_duration_s(text: str) -> float:
    """Read a duration such as ``20ms`` and return seconds.

    Raises:
        ValueError: The text is no duration.
    """
    match = _DURATION.match(text.strip().lower())
    if match is None:
        raise ValueError(
            f"{text!r} is no duration; write '20ms' or '1.5s', "
            "and a latency as '20ms', '10ms-50ms' or 'lognormal:50ms,p99=400ms'"
        )
    return float(match["number"]) * _UNITS_S[match["unit"]]


def _duration_text(seconds: float) -> str:
    unit = "s" if seconds >= 1 else "ms" if seconds >= 1e-3 or seconds == 0 else "us"
    return f"{seconds / _UNITS_S[unit]:.9g}{unit}"
