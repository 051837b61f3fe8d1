"""What a simulator saw: arrivals, refusals and costs, from its log."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

_REFUSED = 429


class Line(Struct, frozen=True):
    """What is needed of one line of the log."""

    time: float
    status: int | None
    tokens: int


class Calls(Struct, frozen=True):
    """Calls of one run, in the order of arrival.

    Attributes:
        accepted_s: Unix times of those that were let in.
        tokens: Their tokens.
        refused_s: Unix times of those that got 429.
    """

    accepted_s: list[float]
    tokens: list[int]
    refused_s: list[float]

    @property
    def refused(self) -> int:
        """How many got 429."""
        return len(self.refused_s)

    @property
    def refused_ppm(self) -> float:
        """Refusals in a million calls."""
        return 1e6 * self.refused / max(1, self.refused + len(self.accepted_s))

    def between(self, begin_s: float, end_s: float) -> int:
        """Return how many calls were accepted within a time."""
        return bisect_left(self.accepted_s, end_s) - bisect_left(self.accepted_s, begin_s)

    def tokens_between(self, begin_s: float, end_s: float) -> int:
        """Return the tokens of the calls accepted within a time."""
        return sum(self.tokens[bisect_left(self.accepted_s, begin_s) : bisect_left(self.accepted_s, end_s)])


def read_calls(log: Path, offset: int = 0) -> Calls:
    """Read the calls that a log has from a byte on."""
    with log.open("rb") as lines:
        lines.seek(offset)
        calls = msgspec.json.Decoder(Line).decode_lines(lines.read())
    accepted = [call for call in calls if call.status != _REFUSED]
    return Calls(
        [call.time for call in accepted],
        [call.tokens for call in accepted],
        [call.time for call in calls if call.status == _REFUSED],
    )


def heaviest_window(times_s: Sequence[float], amounts: Sequence[int], window_s: float) -> int:
    """Return the largest sum of amounts in any half-open window."""
    heaviest, total, first = 0, 0, 0
    for at_s, amount in zip(times_s, amounts, strict=True):
        total += amount
        while times_s[first] <= at_s - window_s:
            total -= amounts[first]
            first += 1
        heaviest = max(heaviest, total)
    return heaviest
