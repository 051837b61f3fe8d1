"""Latency buckets: bounded in number, close in value."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callmill.ledger.latency import bucket, quantile_s, upper_bound_s


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


DISTRIBUTIONS = {
    "constant": lambda _: 0.12,
    "uniform": lambda rnd: rnd.uniform(0.05, 2),
    "exponential": lambda rnd: rnd.expovariate(10),
    "lognormal": lambda rnd: rnd.lognormvariate(-2, 1),
    "heavy tail": lambda rnd: 0.02 * rnd.paretovariate(1.2),
    "two kinds": lambda rnd: rnd.gauss(5, 0.5) if rnd.random() < 0.02 else rnd.gauss(0.08, 0.01),
    "fast": lambda rnd: rnd.uniform(0.0002, 0.0009),
    "slow": lambda rnd: rnd.triangular(60, 600, 90),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_percentiles_are_within_3_percent(name):
    """p50, p95 and p99 are within 3 % of the true ones, however latencies are distributed."""
    rnd = random.Random(name)
    latencies_us = sorted(max(2, int(DISTRIBUTIONS[name](rnd) * 1e6)) for _ in range(20_000))
    counts = Counter(map(bucket, latencies_us))
    for share in (0.5, 0.95, 0.99):
        true_us = latencies_us[int(share * len(latencies_us)) - 1]
        assert quantile_s(counts, share) == pytest.approx(true_us / 1e6, rel=0.03)


@given(st.integers(2, 10**10))
def test_a_latency_lies_within_its_bucket(latency_us):
    """A latency lies below the bound of its bucket, and not below that of the bucket before."""
    number = bucket(latency_us)
    assert upper_bound_s(number - 1) * (1 - 1e-9) <= latency_us / 1e6 <= upper_bound_s(number) * (1 + 1e-9)


def test_extremes():
    """No calls have no quantile; a day fits; nothing, less than nothing and one microsecond share a bucket."""
    assert quantile_s({}, 0.5) is None
    assert bucket(86_400_000_000) < 600
    assert bucket(0) == bucket(1) == bucket(-5) == 0
