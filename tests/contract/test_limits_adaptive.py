"""What refusals teach the limiter, against model servers and on a Redis whose time the test sets."""

from __future__ import annotations

from itertools import pairwise

import pytest
from limits_kit import GUARD_US, Fleet, rules
from limits_server import BucketServer, Caller, SlidingServer

from callmill.config.limit_spec import Enforcer
from callmill.limits.rules import FIRST_GUESS_PER_S


def adaptive(redis_url, *limits: str, enforcer: Enforcer = Enforcer.SLIDING, burst: int = 1) -> Fleet:
    """Return a fleet under these limits, past its cold start."""
    fleet = Fleet(redis_url, rules(*limits, enforcer=enforcer, burst=burst))
    fleet.warm()
    return fleet


def factor(fleet: Fleet, index: int = 0) -> float:
    """Return how much a limit's pace differs from its configured one."""
    return float(fleet.redis.hget(fleet.limit_keys[index], "factor") or 1)


@pytest.mark.parametrize(("rate", "search_s", "settled_s"), [(7, 300, 900), (100, 120, 60), (1500, 200, 20)])
def test_an_unknown_limit_is_found_and_used(redis_url, rate, search_s, settled_s):
    """Whatever a bucket's rate, after a search 95 % of it is used, with a refusal every few minutes at most."""
    fleet = adaptive(redis_url, "auto")
    caller = Caller(fleet, BucketServer(rate, 20))
    caller.run(search_s)
    taken, refused = len(caller.taken_us), len(caller.refused_us)
    caller.run(settled_s)
    assert len(caller.taken_us) - taken >= 0.95 * rate * settled_s
    assert len(caller.refused_us) - refused <= 2 + settled_s / 150


def test_a_limit_that_is_raised_is_found_again(redis_url):
    """The pace follows a server that doubles its rate within a quarter of an hour, one that halves it in seconds."""
    fleet = adaptive(redis_url, "auto")
    caller = Caller(fleet, BucketServer(20, 5))
    caller.run(120)
    caller.server.rate = 40
    caller.run(900)
    assert 32 <= factor(fleet) * FIRST_GUESS_PER_S <= 42
    caller.server.rate = 20
    caller.run(30)
    assert factor(fleet) * FIRST_GUESS_PER_S < 20.5


def test_the_search_stays_below_a_configured_limit(redis_url):
    """A search beside 50 a second, against a server that takes everything, becomes just 50 a second."""
    fleet = adaptive(redis_url, "auto", "50/second")
    caller = Caller(fleet, BucketServer(1e6, 1000))
    caller.run(60)
    late = [start for start in caller.taken_us if start > fleet.us - 30_000_000]
    assert {after - before for before, after in pairwise(late)} == {20_160}
    assert factor(fleet) * FIRST_GUESS_PER_S < 70


@pytest.mark.parametrize(("calls", "every_us"), [(1, 200_000), (5, 1_000_000), (3, 10_000_000)])
def test_a_pace_that_is_not_used_does_not_grow(redis_url, calls, every_us):
    """Demand below the pace, smooth or in bunches, shows nothing of what the server takes: no increase."""
    fleet = adaptive(redis_url, "auto")
    Caller(fleet, BucketServer(1e6, 1000)).run(120, calls=calls, every_us=every_us)
    assert factor(fleet) <= 1.25


def test_many_refusals_at_once_are_one_event(redis_url):
    """A hundred refusals of calls that started together lower the pace once; so do later ones of earlier starts."""
    fleet = adaptive(redis_url, "auto")
    fleet.set_time(fleet.us + 5_000_000)
    assert [fleet.refused(100_000) for _ in range(100)] == [1] + [0] * 99
    after = factor(fleet)
    fleet.set_time(fleet.us + 2_000_000)
    assert fleet.refused(2_000_001) == 0
    assert factor(fleet) == after
    assert fleet.refused(500_000) == 1
    assert factor(fleet) < after


def test_one_refusal_widens_the_guard_and_the_next_slows_down(redis_url):
    """Where a kept limit is refused, the guard grows by half; within a minute the pace drops 5 %, and comes back."""
    fleet = adaptive(redis_url, "100/second")
    caller = Caller(fleet, BucketServer(1e6, 1000))
    caller.run(5)
    assert fleet.refused() == 1
    assert (fleet.reserve(caller.worker, 0).guard_us, factor(fleet)) == (GUARD_US * 3 // 2, 1)
    caller.run(10)
    assert fleet.refused() == 1
    assert factor(fleet) == 0.95
    caller.run(10)
    assert {after - before for before, after in pairwise(caller.taken_us[-20:])} <= {
        round((1_000_000 + guard) / 95) for guard in range(11_800, 12_000)
    }
    caller.run(30)
    assert factor(fleet) == 1
    assert fleet.redis.hget(fleet.limit_keys[0], "mode") == ""


def test_what_was_added_to_the_guard_fades(redis_url):
    """An hour without refusals later, the guard is what workers ask for again."""
    fleet = adaptive(redis_url, "100/second")
    caller = Caller(fleet, BucketServer(1e6, 1000))
    caller.run(1)
    fleet.refused()
    widened = fleet.reserve(caller.worker, 0).guard_us
    for _ in range(2):
        fleet.set_time(fleet.us + 1_000_000_000)
        fleet.reserve(caller.worker, 0)
    faded = fleet.reserve(caller.worker, 0).guard_us
    assert GUARD_US < faded < GUARD_US + 0.2 * (widened - GUARD_US)


@pytest.mark.parametrize("enforcer", [Enforcer.SLIDING, Enforcer.BUCKET])
def test_however_often_it_is_refused_the_guard_stays_small(redis_url, enforcer):
    """A refusal every two minutes for an hour, whatever it means, costs a sixth of the pace at most."""
    fleet = adaptive(redis_url, "100/second", enforcer=enforcer, burst=20)
    caller = Caller(fleet, BucketServer(1e6, 1000))
    for _ in range(25):
        fleet.set_time(fleet.us + 100_000_000)
        caller.run(20)
        fleet.refused()
    fleet.set_time(fleet.us + 30_000_000)
    taken = len(caller.taken_us)
    caller.run(10)
    assert len(caller.taken_us) - taken >= 10 * 100 * 5 / 6


def test_a_server_that_takes_less_than_it_says_is_obeyed(redis_url):
    """Configured 10 % above what a sliding server takes, refusals become rare and most of its rate is used."""
    fleet = adaptive(redis_url, "110/second")
    caller = Caller(fleet, SlidingServer(100))
    caller.run(100)
    taken, refused = len(caller.taken_us), len(caller.refused_us)
    caller.run(100)
    assert len(caller.taken_us) - taken >= 0.9 * 100 * 100
    assert len(caller.refused_us) - refused <= 0.002 * 100 * 100
