"""The counts: exact peaks, bounded memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callmill.simulator.key_counts import KeyCounts
from callmill.simulator.run_stats import LatencyHistogram
from callmill.simulator.window_peak import WindowPeak

SECOND = 1_000_000_000


@given(st.lists(st.tuples(st.one_of(st.just(0), st.just(SECOND), st.integers(0, SECOND)), st.integers(0, 9))))
def test_the_peak_is_the_largest_sum_of_any_window(calls):
    """The peak equals the largest sum over all half-open windows that end at a call, by brute force."""
    peak, log, now_ns = WindowPeak(SECOND), [], 0
    for gap_ns, amount in calls:
        now_ns += gap_ns
        peak.add(now_ns, amount)
        log.append((now_ns, amount))
    sums = [sum(amount for at, amount in log if end - SECOND < at <= end) for end, _amount in log]
    assert peak.peak == max(sums, default=0)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans()), max_size=60))
def test_keys_are_counted_exactly_while_they_are_remembered(calls):
    """Distinct keys, repeated keys and calls after a success equal those of a complete log."""
    counts = KeyCounts(generation=5)
    seen: dict[str, int] = {}
    succeeded: set[str] = set()
    after_success = 0
    for key, success in calls:
        counts.arrived(key)
        seen[key] = seen.get(key, 0) + 1
        after_success += key in succeeded
        if success:
            counts.succeeded(key)
            succeeded.add(key)
    assert counts.distinct == len(seen)
    assert counts.repeated == sum(count > 1 for count in seen.values())
    assert counts.repeated_after_success == after_success
    assert counts.forgotten == 0


def test_forgotten_keys_are_bounded_and_admitted():
    """With more keys than fit the memory stays bounded, and the number forgotten is told."""
    counts = KeyCounts(generation=10, examples=3)
    for number in range(1000):
        counts.arrived(str(number))
        counts.succeeded(str(number))
        counts.arrived(str(number))
    assert counts.repeated_after_success == 1000
    assert counts.examples == ["0", "1", "2"]
    assert counts.forgotten == 1000 - len(counts._young) - len(counts._old)
    assert len(counts._young) + len(counts._old) <= 20


def test_quantiles_of_latencies_are_right_within_two_percent():
    """Median, p99, mean and maximum of known latencies come back."""
    histogram = LatencyHistogram()
    for number in range(1, 1001):
        histogram.add(number / 1000)
    report = histogram.report()
    assert (report.count, report.max_s) == (1000, 1.0)
    assert (report.mean_s, report.p50_s, report.p99_s) == pytest.approx((0.5005, 0.5, 0.99), rel=0.02)


def test_no_latencies_give_zeros():
    """An empty histogram reports zeros and does not fail."""
    assert LatencyHistogram().report().p99_s == 0.0
