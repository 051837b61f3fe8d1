"""Prometheus's histograms out of the ledger's buckets."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callmill.dashboard.metrics_buckets import LATENCY, WAIT
from callmill.ledger.latency import bucket, upper_bound_s

LADDERS = [LATENCY, WAIT]


@given(st.lists(st.integers(0, 10**11)), st.sampled_from(LADDERS))
def test_buckets_are_exact_sums_of_the_ledgers(latencies_us, ladder):
    """Each bound has the calls of all the ledger's buckets up to its own, and what it counts lies below it."""
    counts = Counter(map(bucket, latencies_us))
    *rungs, (last, total) = ladder.cumulative(counts)
    assert (last, total) == ("+Inf", len(latencies_us))
    for bound, seen in rungs:
        below = [number for number in counts if upper_bound_s(number) <= float(bound)]
        assert seen == sum(counts[number] for number in below)
        assert seen <= sum(latency_us <= float(bound) * 1e6 for latency_us in latencies_us)


@pytest.mark.parametrize("ladder", LADDERS)
def test_bounds_are_those_of_the_ledgers_buckets(ladder):
    """The bounds rise, and each is the upper bound of one of the ledger's buckets, rounded up by under 0.1 %."""
    bounds = list(map(float, ladder.bounds))
    assert bounds == sorted(set(bounds))
    exact = [upper_bound_s(number) for number in range(600)]
    for bound in bounds:
        nearest = max(value for value in exact if value <= bound)
        assert bound < nearest * 1.001


def test_bounds_span_what_occurs():
    """Latencies are told apart from a millisecond to minutes, waiting times to half a day, each in few buckets."""
    for ladder, longest_s in ((LATENCY, 600), (WAIT, 12 * 3600)):
        bounds = list(map(float, ladder.bounds))
        assert bounds[0] <= 0.001
        assert bounds[-1] >= longest_s
        assert len(bounds) <= 45
