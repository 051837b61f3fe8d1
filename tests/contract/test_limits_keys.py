"""How several credentials of one API share and keep their limits, on a Redis whose time the test sets."""

from __future__ import annotations

from itertools import pairwise

import pytest
from limits_kit import GUARD_US, Fleet, Worker, rules, worst_window
from msgspec.structs import replace

from callmill.config.limit_spec import parse_limit
from callmill.limits.rules import KeyRules

LOOK_US = 5_000_000


def pool(redis_url, *limits: str, **keys: tuple[str, ...]) -> Fleet:
    """Return a fleet with these credentials and their own limits, past its cold start."""
    own = tuple(KeyRules(name, tuple(parse_limit(text) for text in texts)) for name, texts in keys.items())
    fleet = Fleet(redis_url, replace(rules(*limits), keys=own))
    fleet.warm()
    return fleet


def collect(fleet: Fleet, seconds: float, calls: int = 64, allowances=()) -> dict[int, list[int]]:
    """Let a worker want calls all the time and return the starts of each credential."""
    worker, end = Worker("caller"), fleet.us + round(seconds * 1e6)
    starts: dict[int, list[int]] = {}
    while fleet.us < end:
        reply = fleet.reserve(worker, calls, allowances=allowances)
        for start, key in zip(reply.starts_us, reply.keys, strict=True):
            starts.setdefault(key, []).append(start)
        fleet.set_time(max(fleet.us + 10_000, worker.again_us))
    return starts


def emission_us(rate: int) -> float:
    """Return how far apart a strict server's starts are."""
    return (1_000_000 + GUARD_US) / rate


def gaps(starts):
    """Return the distances between neighbours."""
    return [after - before for before, after in pairwise(starts)]


def test_each_key_keeps_its_own_pace_and_they_add_up(redis_url):
    """Under a limit per key, each key's starts are exactly its emission apart: three keys make three times the rate."""
    starts = collect(pool(redis_url, "50/second per key", a=(), b=(), c=()), 4)
    assert set(starts) == {1, 2, 3}
    for own in starts.values():
        assert set(gaps(own)) == {20_160}
    assert len({len(own) for own in starts.values()}) <= 2


def test_keys_may_have_different_limits(redis_url):
    """Each key is used as much as its own limit allows, beside what all have in common."""
    starts = collect(pool(redis_url, "40/second per key", a=("10/second",), b=(), c=("1000/minute",)), 6)
    for key, rate in ((1, 10), (2, 40)):
        assert min(gaps(starts[key])) >= emission_us(rate) - 1
        assert max(gaps(starts[key])) <= emission_us(rate) + 1
    assert max(gaps(starts[3])) <= (60_000_000 + GUARD_US) / 1000 + 1


def test_a_shared_limit_above_the_keys_holds(redis_url):
    """The keys together never exceed the limit of them all, use all of it, and none is left out."""
    starts = collect(pool(redis_url, "60/second", "50/second per key", a=(), b=()), 5)
    everything = sorted(starts[1] + starts[2])
    assert max(gaps(everything)) <= emission_us(60) + 1
    assert worst_window(everything, 1_000_000 + GUARD_US - 60) <= 60
    for own in starts.values():
        assert min(gaps(own)) >= emission_us(50) - 1
        assert len(own) > 0.3 * len(everything)


def test_a_paused_key_leaves_the_calls_to_the_others(redis_url):
    """No call gets a paused key before its pause is over, the others go on at their pace, and the reply says why."""
    fleet = pool(redis_url, "50/second per key", a=(), b=())
    fleet.pause(3_000_000, "401", "key:a")
    until = fleet.us + 3_000_000
    reply = fleet.reserve(Worker("asks"), 0)
    assert reply.scopes == [(0, ""), (3_000_000, "401"), (0, "")]
    starts = collect(fleet, 5)
    assert starts[1][0] >= until
    assert starts[1][0] <= until + 300_000
    assert set(gaps(starts[2])) == {20_160}


def test_nothing_starts_while_all_keys_are_paused(redis_url):
    """With every key paused nothing starts, and who waits looks again within 5 s; then the first free key serves."""
    fleet = pool(redis_url, "50/second per key", a=(), b=())
    fleet.pause(60_000_000, "402", "key:a")
    fleet.pause(30_000_000, "402", "key:b")
    until, worker = fleet.us + 30_000_000, Worker("waits")
    while fleet.us < until - 500_000:
        reply = fleet.reserve(worker, 5)
        assert reply.starts_us == []
        assert 0 < reply.again_in_us <= LOOK_US
        fleet.set_time(min(worker.again_us, until - 500_000))
    starts = collect(fleet, 3)
    assert set(starts) == {2}
    assert until <= starts[2][0] <= until + 20_160


def test_no_key_is_used_more_often_than_allowed(redis_url):
    """A request gets no more starts with a key than it says it can use, and none with one it cannot use at all."""
    fleet = pool(redis_url, "1000/second per key", a=(), b=(), c=())
    keys = fleet.reserve(Worker("w"), 20, allowances=(3, 0, 9)).keys
    assert (keys.count(1), keys.count(2), keys.count(3)) == (3, 0, 9)


def test_a_worker_without_any_usable_key_waits_without_harm(redis_url):
    """Where no key may be used nothing is granted or charged, and others are not held up."""
    fleet = pool(redis_url, "100/second per key", a=(), b=())
    reply = fleet.reserve(Worker("full"), 5, allowances=(0, 0))
    assert reply.starts_us == []
    assert 0 < reply.again_in_us <= LOOK_US
    assert len(fleet.reserve(Worker("free"), 5).starts_us) == 5


@pytest.mark.parametrize("rate", [1, 5])
def test_slow_keys_are_used_fully(redis_url, rate):
    """Also where a key's emission is longer than the horizon, every key is used all the time."""
    starts = collect(pool(redis_url, f"{rate}/second per key", a=(), b=()), 30 / rate)
    assert set(starts) == {1, 2}
    for own in starts.values():
        assert max(gaps(own)) <= emission_us(rate) + 1
