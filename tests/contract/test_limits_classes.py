"""How classes of traffic share a limit, on a Redis whose time the test sets."""

from __future__ import annotations

from itertools import pairwise

import pytest
from limits_kit import GUARD_US, Fleet, Worker, jain, rules
from msgspec.structs import replace

from callmill.jobs.traffic import Priority, TrafficClass

CALLS = {1: 5, 5: 5, 20: 8, 200: 32, 1000: 128}
SECONDS = {1: 240, 5: 80, 20: 20, 200: 4, 1000: 2}


def fleet_at(redis_url, rate, **tenant_weights) -> Fleet:
    """Return a fleet under so many calls a second, past its cold start."""
    fleet = Fleet(redis_url, replace(rules(f"{rate}/second"), tenant_weights=tenant_weights))
    fleet.warm()
    return fleet


def crowd(tenant: str, count: int, priority: Priority = Priority.NORMAL) -> list[Worker]:
    """Return workers of one class."""
    return [Worker(f"{tenant}{index}", traffic=TrafficClass(priority, tenant)) for index in range(count)]


def starts_of(workers, since_us: int = 0) -> list[int]:
    """Return the starts of workers from a time on, in order."""
    return sorted(start for worker in workers for start in worker.starts_us if start >= since_us)


def widest_gap(workers, since_us: int = 0) -> int:
    """Return the longest time without a start."""
    return max(after - before for before, after in pairwise(starts_of(workers, since_us)))


def emission_us(rate: int) -> float:
    """Return how far apart a strict server's starts are."""
    return (1_000_000 + GUARD_US) / rate


@pytest.mark.parametrize("rate", [1, 5, 20, 200, 1000])
@pytest.mark.parametrize(("few", "many", "weight"), [(1, 16, 1), (2, 6, 3), (4, 4, 8)])
def test_tenants_get_their_shares_and_nothing_is_unused(redis_url, rate, few, many, weight):
    """Two tenants get their parts within 2 %, no start is missing, and exchanges are few, at any rate and crowd."""
    fleet = fleet_at(redis_url, rate, a=float(weight))
    a, b = crowd("a", few), crowd("b", many)
    calls = [CALLS[rate]] * (few + many)
    fleet.run([*a, *b], SECONDS[rate] / 10, calls=calls)
    settled = max(fleet.us, starts_of([*a, *b])[-1])
    fleet.run([*a, *b], SECONDS[rate], calls=calls)
    got_a, got_b = len(starts_of(a, settled)), len(starts_of(b, settled))
    share = weight / (1 + weight)
    edge = 2  # where the count begins and ends, one call more or less belongs to either
    assert abs(got_a - share * (got_a + got_b)) <= 0.02 * share * (got_a + got_b) + edge
    assert widest_gap([*a, *b]) <= emission_us(rate) + 1
    assert sum(worker.exchanges for worker in [*a, *b]) <= 4.5 * len(starts_of([*a, *b])) + 2 * (few + many)


@pytest.mark.parametrize("rate", [20, 200])
def test_inside_a_class_workers_are_alike(redis_url, rate):
    """Beside another tenant, the sixteen workers of one class share its part evenly."""
    fleet = fleet_at(redis_url, rate)
    a, b = crowd("a", 1), crowd("b", 16)
    fleet.run([*a, *b], 4 * SECONDS[rate], calls=[4] * 17)
    settled = starts_of(b)[16]
    assert jain([sum(start > settled for start in worker.starts_us) for worker in b]) > 0.98


@pytest.mark.parametrize("rate", [5, 20, 200, 1000])
def test_no_gap_when_a_tenant_leaves(redis_url, rate):
    """The part of a tenant that leaves is used by the other from the next start on."""
    fleet = fleet_at(redis_url, rate)
    a, b = crowd("a", 1), crowd("b", 8)
    seconds = SECONDS[rate] / 2
    fleet.run([*a, *b], seconds, calls=[CALLS[rate]] * 9, leave={0: seconds / 2})
    assert widest_gap([*a, *b]) <= emission_us(rate) + 1


@pytest.mark.parametrize("rate", [20, 200, 1000])
def test_who_comes_late_gets_its_share_at_once(redis_url, rate):
    """A class that begins beside a busy one has its half from two thirds of a second after it came on."""
    fleet = fleet_at(redis_url, rate)
    busy, late = crowd("busy", 8), crowd("late", 1)
    fleet.run(busy, SECONDS[rate] / 2, calls=[CALLS[rate]] * 8)
    came = fleet.us
    for worker in busy:
        worker.again_us = max(worker.again_us, came)
    fleet.run([*busy, *late], 2, calls=[CALLS[rate]] * 9)
    since = came + 600_000
    got, other = len(starts_of(late, since)), len(starts_of(busy, since))
    assert late[0].starts_us[0] <= since
    assert got >= 0.47 * (got + other)


def test_bulk_never_starves(redis_url):
    """Under endless interactive and normal demand, bulk still gets its thirteenth, evenly over time."""
    fleet = fleet_at(redis_url, 100)
    kinds = {kind: crowd(kind.value, 4, kind) for kind in Priority}
    workers = [worker for each in kinds.values() for worker in each]
    fleet.run(workers, 30, calls=[16] * 12)
    total = len(starts_of(workers))
    for kind, weight in ((Priority.INTERACTIVE, 8), (Priority.NORMAL, 4), (Priority.BULK, 1)):
        assert len(starts_of(kinds[kind])) == pytest.approx(total * weight / 13, rel=0.06)
    assert widest_gap(kinds[Priority.BULK]) <= 1_000_000
