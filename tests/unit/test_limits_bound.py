"""How much of a limit can be used: against the formulas, the pace of the scripts, and known figures."""

from __future__ import annotations

import itertools

import pytest
from limits_kit import rules

from callmill.config.limit_spec import Enforcer
from callmill.limits.bound import Guard, bounds, measured
from callmill.limits.rules import clocks

STRICT = (Enforcer.SLIDING, Enforcer.FIXED, Enforcer.UNKNOWN)


def bound_of(limit, guard_ms, enforcer=Enforcer.SLIDING, burst=1, **facts):
    """Return the bound of one limit."""
    return bounds(rules(limit, enforcer=enforcer, burst=burst), Guard(guard_ms / 1000), **facts)[0]


@pytest.mark.parametrize("enforcer", STRICT)
@pytest.mark.parametrize(
    ("limit", "guard_ms", "percent"),
    [
        ("100/second", 22, 97.85),
        ("100/second", 5, 99.5),
        ("1000/second", 8, 99.21),
        ("100/second", 50, 95.24),
        ("1000/second", 10, 99.01),
        ("100/minute", 600, 99.01),
        ("1000000 tokens/minute", 55, 99.91),
    ],
)
def test_strict_windows(enforcer, limit, guard_ms, percent):
    """Of a window that is counted strictly, window / (window + guard) can be used, whatever the rate."""
    assert bound_of(limit, guard_ms, enforcer).usable * 100 == pytest.approx(percent, abs=0.01)


@pytest.mark.parametrize(
    ("rate", "guard_ms", "burst", "percent"),
    [
        (100, 5, 1, 66.67),
        (100, 20, 1, 33.33),
        (1000, 19, 20, 100),
        (1000, 20, 20, 50),
        (100, 50, 6, 100),
        (100, 100, 6, 16.67),
        (10, 22, 2, 100),
    ],
)
def test_buckets(rate, guard_ms, burst, percent):
    """A bucket is used whole while rate x guard <= burst - 1; beyond, what it does not forgive is between any two."""
    bound = bound_of(f"{rate}/second", guard_ms, Enforcer.BUCKET, burst)
    assert bound.usable * 100 == pytest.approx(percent, abs=0.01)
    assert bound.pace_per_s == pytest.approx(rate * percent / 100, rel=0.001)


def test_the_bound_is_the_pace_of_the_scripts():
    """The share is what the emission that reserve.lua computes leaves of the limit, for every enforcer and guard."""
    cases = itertools.product(("10/second", "1000/second", "10/minute", "500/minute"), Enforcer, (1, 20), (4, 22, 600))
    for limit, enforcer, burst, guard_ms in cases:
        clock = clocks(rules(limit, enforcer=enforcer, burst=burst))[0]
        window_us = clock.window_us + clock.gain * max(0, guard_ms * 1000 - clock.slack_us)
        granted = clock.amount / window_us * clock.window_us / clock.spec.amount
        assert bound_of(limit, guard_ms, enforcer, burst).usable == pytest.approx(granted)


def test_a_known_phase_and_parts_of_a_window_change_the_bound():
    """Fixed windows of known phase are used whole; a window enforced in parts is as strict as its parts are short."""
    assert bound_of("100/second", 22, Enforcer.FIXED, phase_known=True).usable == 1
    assert bound_of("60000/minute", 22, quantum_s=1).usable == pytest.approx(1 / 1.022)
    assert "in parts of 1 s" in bound_of("60000/minute", 22, quantum_s=1).why


def test_what_is_not_paced():
    """Permits are used whole, a quota but for its steps, and of an unknown limit no share is claimed."""
    assert bound_of("64 concurrent", 22).usable == 1
    auto, day = bound_of("auto", 22), bound_of("10000/day", 22)
    assert (auto.usable, auto.pace_per_s, "by trying" in auto.why) == (None, None, True)
    assert day.usable == pytest.approx(96 / 97, abs=1e-5)
    assert "98.9 % of 10000/day" in day.why
    assert "15 minutes" in day.why


def test_the_reason_is_told_with_its_parts():
    """Below 99 % the reason names how the server counts, the guard with its parts, and what would help."""
    limits = rules("100/second")
    words = bounds(limits, measured(limits, 0.022, 0.012, 0.005))[0].why
    assert words.startswith(
        "97.8 % of 100/second at most: its server counts a sliding window, and calls may reach it up to 22 ms apart "
        "from their plan (lateness of this host 12 ms, way to Redis 5 ms, slot validity 5 ms)."
    )
    assert words.endswith("A longer window, a bucket server or a quieter host would give more.")
    assert "10 ms more that some process needed" in bounds(limits, measured(limits, 0.032, 0.012, 0.005))[0].why
    configured = rules("100/second", guard_s=0.022)
    assert "22 ms apart from their plan (the guard that is set)" in bounds(configured, Guard(0.022))[0].why


@pytest.mark.parametrize(
    ("enforcer", "words"),
    [
        (Enforcer.FIXED, "nobody knows when they begin"),
        (Enforcer.UNKNOWN, "If it is a bucket, say so in the profile"),
    ],
)
def test_every_strict_server_has_its_own_reason(enforcer, words):
    """The reason is the one of the server at hand."""
    assert words in bound_of("100/second", 22, enforcer).why


def test_buckets_without_burst_are_warned_of():
    """A bucket that forgives nothing is called unusable at speed, with the burst that would do, and not when slow."""
    fast = bound_of("100/second", 22, Enforcer.BUCKET)
    assert fast.why.startswith("31.2 % of 100/second at most, unusable at speed: its bucket forgives nothing (burst 1)")
    assert "A burst of 4 would do" in fast.why
    assert bound_of("100/second", 22, Enforcer.BUCKET, burst=4).why is None
    slow = bound_of("1/second", 22, Enforcer.BUCKET)
    assert "unusable" not in slow.why
    assert bound_of("10/minute", 22, Enforcer.BUCKET).why is None
    assert "forgives 10 ms (burst 2)" in bound_of("100/second", 22, Enforcer.BUCKET, burst=2).why


def test_whole_thousandths_are_a_reason():
    """Where nginx's whole thousandths cost more than a percent, they are the reason given."""
    bound = bound_of("1/minute", 4, Enforcer.BUCKET, burst=20)
    assert bound.usable == pytest.approx(0.96)
    assert "whole thousandths" in bound.why


def test_nothing_is_said_where_there_is_nothing_to_say():
    """At 99 % and above there is no explanation, and a share is cut, never rounded up over the truth."""
    assert bound_of("100/second", 10).why is None
    assert bound_of("100/second", 10.2).why.startswith("98.9 % ")
