"""Prometheus's histograms out of the ledger's latency buckets: the same counts, in fewer and cumulative buckets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from callmill.ledger.latency import upper_bound_s

_DIGITS = 4


class Ladder:
    """The upper bounds of a histogram, every one of which is that of a bucket of the ledger.

    Args:
        buckets: Those buckets of the ledger, in rising order.
    """

    def __init__(self, buckets: Iterable[int]) -> None:
        self._rungs = [(bucket, repr(_shown(upper_bound_s(bucket)))) for bucket in buckets]

    @property
    def bounds(self) -> list[str]:
        """What stands as ``le``, in seconds, without the last one, which is ``+Inf``."""
        return [bound for _, bound in self._rungs]

    def cumulative(self, counts: Mapping[int, int]) -> list[tuple[str, float]]:
        """Return for each bound how much lies below, from the counts of the ledger's buckets: exact sums of them."""
        rising, at, seen = sorted(counts), 0, 0
        rows: list[tuple[str, float]] = []
        for bucket, bound in self._rungs:
            while at < len(rising) and rising[at] <= bucket:
                seen += counts[rising[at]]
                at += 1
            rows.append((bound, seen))
        return [*rows, ("+Inf", sum(counts.values()))]


def _shown(bound_s: float) -> float:
    """Round up to a few digits, for readers: what lies below the bound lies below that, too."""
    unit = 10.0 ** (math.floor(math.log10(bound_s)) - _DIGITS + 1)
    return float(f"{math.ceil(bound_s / unit) * unit:.{_DIGITS}g}")


LATENCY = Ladder(range(140, 422, 7))
"""From 1 ms to 14 min, each 1.41 times the one before."""

WAIT = Ladder(range(140, 505, 14))
"""From 1 ms to 13 h, each doubling the one before, nearly."""
