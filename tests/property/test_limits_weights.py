"""Calls that count as several requests: no window and no bucket ever gets too much, and little is left unused."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limits_kit import GUARD_US, Fleet, Worker, heaviest_window, rules
from limits_server import BucketServer

from callmill.config.limit_spec import Enforcer

WINDOW_US = 1_000_000
AMOUNT = 20


class Demand:
    """Workers that always want to make calls of the weights that they draw, each when it may ask again."""

    def __init__(self, fleet: Fleet, weights: Sequence[Sequence[int]], guard_us: int = GUARD_US) -> None:
        self.fleet, self._guard_us = fleet, guard_us
        self._drawn = [list(drawn) for drawn in weights]
        self._workers = [Worker(f"w{index}") for index in range(len(weights))]
        self.started: list[tuple[int, int]] = []

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.fleet.real_us + round(seconds * 1e6)
        due = [self.fleet.real_us + index for index in range(len(self._workers))]
        while (at := min(due)) < end:
            index = due.index(at)
            self.fleet.set_time(at + self.fleet.jumped_us)
            worker, waiting = self._workers[index], self._drawn[index]
            costs = [(weight, 0, 0, 0) for weight in waiting[:30]]
            starts = self.fleet.reserve_weighted(worker, costs, self._guard_us)
            ahead_us = worker.ahead_us or 0
            self.started += zip((start - ahead_us for start in starts), waiting, strict=False)
            waiting += waiting[: len(starts)]  # the same again, for ever
            del waiting[: len(starts)]
            due[index] = max(worker.again_us - ahead_us, at + 500)

    def look(self) -> None:
        """Let all workers look at once, as they do when they hear of a new life."""
        for worker in self._workers:
            self.fleet.reserve(worker, 0)

    def units_per_s(self, since_us: int) -> float:
        """Return what started since then, up to now."""
        return (
            sum(units for at, units in self.started if since_us <= at < self.fleet.real_us)
            / (self.fleet.real_us - since_us)
            * 1e6
        )


def warm(redis_url: str, text: str, **enforcer: object) -> Fleet:
    """Return a fleet that is over its cold start."""
    fleet = Fleet(redis_url, rules(text, **enforcer))  # type: ignore[arg-type] # what rules() takes
    fleet.wipe()
    fleet.publish()
    fleet.warm()
    return fleet


@given(weights=st.lists(st.lists(st.integers(1, AMOUNT), min_size=1, max_size=12), min_size=1, max_size=3))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_window_holds_too_many_units(redis_url, weights):
    """Whatever calls weigh and whenever they come, no window that the guard widens holds more than the limit."""
    fleet = warm(redis_url, f"{AMOUNT}/second")
    demand = Demand(fleet, weights)
    demand.run(6)
    assert len(demand.started) > 3
    assert heaviest_window(demand.started, WINDOW_US + GUARD_US - 2) <= AMOUNT


@given(
    weights=st.lists(st.lists(st.integers(1, AMOUNT), min_size=1, max_size=12), min_size=1, max_size=3),
    events=st.lists(st.tuples(st.floats(0.01, 1.5), st.integers(-3_000_000, 0)), min_size=1, max_size=4),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_window_holds_too_many_units_when_time_or_state_is_lost(redis_url, weights, events):
    """Neither a clock that goes back (by so many us) nor lost state (0) makes a window too full of heavy calls."""
    fleet = warm(redis_url, f"{AMOUNT}/second")
    demand = Demand(fleet, weights)
    for seconds, back_us in events:
        demand.run(seconds)
        demand.look()
        if back_us:
            fleet.jump(back_us)
        else:
            fleet.wipe()
            fleet.publish()
        demand.look()
    demand.run(4)
    assert heaviest_window(demand.started, WINDOW_US + GUARD_US - 2 * AMOUNT) <= AMOUNT


@pytest.mark.parametrize(("amount", "weight"), [(20, 20), (42, 5), (1000, 100), (1000, 2), (60, 1)])
def test_calls_of_one_weight_use_the_window(redis_url, amount, weight):
    """Calls that all weigh the same use a window up to the last one that fits, but for the guard."""
    fleet = warm(redis_url, f"{amount}/second")
    demand, since = Demand(fleet, [[weight] * 30] * 2), fleet.us
    demand.run(12)
    most = amount // weight * weight * WINDOW_US / (WINDOW_US + GUARD_US)
    assert heaviest_window(demand.started, WINDOW_US + GUARD_US - 2) <= amount
    assert demand.units_per_s(since) >= 0.97 * most


def test_heavy_calls_are_not_starved_by_light_ones(redis_url):
    """One worker with heavy calls gets its turns beside three that make light ones without end."""
    fleet = warm(redis_url, "100/second")
    demand, since = Demand(fleet, [[25] * 30, [1] * 30, [1] * 30, [1] * 30]), fleet.us
    demand.run(20)
    assert heaviest_window(demand.started, WINDOW_US + GUARD_US - 2) <= 100
    heavy = [at for at, units in demand.started if units > 1]
    assert len(heavy) >= 5
    assert max(after - before for before, after in pairwise(heavy)) < 6_000_000
    assert demand.units_per_s(since) >= 0.7 * 100


def test_a_heavy_call_on_an_idle_api_starts_at_once(redis_url):
    """Where nothing started for a window, the whole of it is free for one call."""
    fleet = warm(redis_url, "20/second")
    worker = Worker("w")
    fleet.reserve_weighted(worker, [(1, 0, 0, 0)] * 3)
    fleet.set_time(fleet.us + 2 * WINDOW_US)
    fleet.reserve(worker, 0)
    fleet.set_time(fleet.us + 1000)
    (start,) = fleet.reserve_weighted(worker, [(20, 0, 0, 0)])
    assert start - fleet.us < 10_000


def test_light_calls_are_as_fast_as_ever_when_heavy_ones_are_over(redis_url):
    """What is kept for heavy calls is dropped some windows after the last one, though light ones go on."""
    fleet = warm(redis_url, "50/second")
    Demand(fleet, [[1, 9, 1]]).run(1)
    Demand(fleet, [[1] * 30]).run(4)
    assert fleet.redis.hget(fleet.limit_keys[0], "log") == ""


@given(
    weights=st.lists(st.integers(1, 8), min_size=2, max_size=12),
    seed=st.integers(0, 99),
    late_us=st.integers(0, 90_000),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_late_calls_do_not_empty_a_bucket_for_heavy_ones(redis_url, weights, seed, late_us):
    """However late calls reach a bucket that can hold them, up to the guard, none finds less in it than it weighs."""
    fleet = warm(redis_url, "40/second", enforcer=Enforcer.BUCKET, burst=8)
    demand = Demand(fleet, [weights, weights[::-1]], guard_us=late_us)
    demand.run(5)
    drawn, server = Random(seed), BucketServer(40, 8)
    arrivals = sorted((at + drawn.randint(0, late_us), units) for at, units in demand.started)
    assert len(arrivals) > 10
    assert all(server.take(at, units) for at, units in arrivals)
