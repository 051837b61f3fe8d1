"""Whose turn it is where slots of several classes are due at once."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callmill.jobs.traffic import Priority
from callmill.limits.turns import Turn

WEIGHTS = st.lists(st.sampled_from([0.001, 0.5, 1.0, 3.0, 4.0, 8.0, 24.0]), min_size=1, max_size=6)


def served(turns: list[Turn], calls: int) -> Counter[int]:
    """Let so many calls start; return how many of each."""
    counts: Counter[int] = Counter()
    for _ in range(calls):
        who = min(range(len(turns)), key=lambda n: turns[n].virtual_time)
        turns[who].served()
        counts[who] += 1
    return counts


@given(weights=WEIGHTS, calls=st.integers(1, 400))
def test_shares_follow_weights(weights, calls):
    """At any time every class has had its share of the turns, to within one call of each class."""
    counts = served([Turn(weight) for weight in weights], calls)
    for who, weight in enumerate(weights):
        assert abs(counts[who] - calls * weight / sum(weights)) <= 1 + len(weights)


@given(weights=WEIGHTS)
def test_nobody_starves(weights):
    """However the others are weighted, a class has its first turn before any other one exceeds its weight's part."""
    weights = [max(weight, 0.5) for weight in weights]
    longest = int(sum(weights) / min(weights)) + 2 * len(weights)
    assert len(served([Turn(weight) for weight in weights], longest)) == len(weights)


def test_class_that_was_idle_has_saved_up_nothing():
    """A class that comes late shares from then on; it does not catch up with what others had before."""
    early, late = Turn(1.0), Turn(1.0)
    served([early], 500)
    late.join([early])
    counts = served([early, late], 100)
    assert abs(counts[0] - counts[1]) <= 2


def test_class_that_was_served_keeps_its_time():
    """Who comes back at once gains nothing by having been away."""
    busy, other = Turn(1.0), Turn(1.0)
    served([busy], 50)
    busy.join([other])
    assert busy.virtual_time == 50


def test_priorities_weigh_as_documented():
    """Interactive, normal and bulk share as 8, 4 and 1."""
    counts = served([Turn(priority.weight) for priority in Priority], 1300)
    assert [counts[n] for n in range(3)] == [pytest.approx(calls, abs=2) for calls in (800, 400, 100)]
