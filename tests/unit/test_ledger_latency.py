"""Latency buckets: bounded in number, close in value."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from callmill.ledger.latency import bucket, quantile_s


@given(st.integers(2, 10**10))
def test_one_latency_is_told_within_2_5_percent(latency_us):
    """A latency that went into its bucket comes out within 2.5 %."""
    told_s = quantile_s({bucket(latency_us): 1}, 0.5)
    assert told_s is not None
    assert abs(told_s * 1e6 / latency_us - 1) <= 0.025


@given(st.lists(st.integers(2, 10**9), min_size=1), st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_quantile_is_that_of_the_latencies(latencies_us, share):
    """A quantile is within 2.5 % of the latency of that rank."""
    told_s = quantile_s(Counter(map(bucket, latencies_us)), share)
    rank = max(1, -int(-share * len(latencies_us) // 1))
    exact = sorted(latencies_us)[rank - 1]
    assert told_s is not None
    assert abs(told_s * 1e6 / exact - 1) <= 0.025


def test_extremes():
    """No calls have no quantile; a day fits; nothing, less than nothing and one microsecond share a bucket."""
    assert quantile_s({}, 0.5) is None
    assert bucket(86_400_000_000) < 600
    assert bucket(0) == bucket(1) == bucket(-5) == 0
