"""Latencies in log-spaced buckets: bounded in size, exact in count, within 2.5 % in value."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

_LOG_RATIO = math.log(1.05)


def bucket(latency_us: int) -> int:
    """Return the bucket of a latency in microseconds."""
    return int(math.log(latency_us) / _LOG_RATIO) if latency_us > 1 else 0


def count_buckets(latencies_us: Iterable[int]) -> Counter[int]:
    """Return how many latencies are in each bucket: ``bucket`` of very many."""
    log, log_ratio = math.log, _LOG_RATIO
    return Counter([int(log(latency_us) / log_ratio) if latency_us > 1 else 0 for latency_us in latencies_us])


def mid_us(number: int) -> float:
    """Return the latency in microseconds for which a bucket stands."""
    return math.exp((number + 0.5) * _LOG_RATIO)


def mean_s(counts: Mapping[int, int]) -> float | None:
    """Return the mean latency in seconds; None without calls."""
    calls = sum(counts.values())
    return sum(mid_us(number) * count for number, count in counts.items()) / calls / 1e6 if calls else None


def quantile_s(counts: Mapping[int, int], share: float) -> float | None:
    """Return the latency in seconds below which ``share`` of the calls lie; None without calls."""
    (quantile,) = quantiles_s(counts, (share,))
    return quantile


def quantiles_s(counts: Mapping[int, int], shares: Sequence[float]) -> list[float | None]:
    """Return the latency in seconds below which each share of the calls lies; the shares ascend. None without calls."""
    total, seen, found = sum(counts.values()), 0, list[float | None]()
    wanted = iter(shares)
    share = next(wanted)
    for number in sorted(counts):
        seen += counts[number]
        while seen >= share * total:
            found.append(mid_us(number) / 1e6)
            share = next(wanted, math.inf)
            if share == math.inf:
                return found
    return [*found, *[None] * (len(shares) - len(found))]


def upper_bound_s(number: int) -> float:
    """Return the latency in seconds that nothing in a bucket reaches; that of the bucket before, everything does."""
    return math.exp((number + 1) * _LOG_RATIO) / 1e6
