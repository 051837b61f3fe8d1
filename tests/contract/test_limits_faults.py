"""What the scripts of the limiter do when clocks, servers and workers fail, on a Redis whose time the test sets."""

from __future__ import annotations

from itertools import pairwise

import pytest
from limits_kit import GUARD_US, LEAD_US, Fleet, Worker, rules, worst_window

from callmill.limits.store import HORIZON_US

LEASE_US = 10_000_000
HOUR_US = 3_600_000_000


class Server:
    """What a Redis keeps, to be lost and found again."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.saved = {key: fleet.redis.dump(key) for key in fleet.redis.scan_iter("callmill:*")}

    def take_over(self) -> None:
        """Let a server take over that has only what was saved."""
        self.fleet.redis.delete(*self.fleet.redis.scan_iter("callmill:*"))
        for key, value in self.saved.items():
            self.fleet.redis.restore(key, 0, value)
        for meta in (self.fleet.keys.meta, self.fleet.keys.permits()[-1]):
            self.fleet.redis.hset(meta, "server", "another")


@pytest.fixture
def permits(redis_url):
    """Return a fleet whose permits are past the time in which nobody knows who holds what."""
    made = Fleet(redis_url, rules())
    made.permits("first", 0, 0, 0, limit=8, lease_us=LEASE_US)
    made.set_time(made.us + LEASE_US)
    return made


def renew(fleet, worker, want, used, *, had=None, limit=8):
    """Renew a lease a moment later; return what is held."""
    fleet.set_time(fleet.us + 1)
    return fleet.permits(worker, want, used, used if had is None else had, limit=limit, lease_us=LEASE_US).held


def test_in_a_new_life_nobody_gets_more_permits_by_asking_twice(permits):
    """After lost state, neither a newcomer nor a survivor gets a permit that another survivor may still use."""
    assert renew(permits, "a", 4, 4, had=0) == 4
    assert renew(permits, "b", 4, 4, had=0) == 4
    permits.wipe()
    for _ in range(3):
        assert renew(permits, "new", 8, 0) == 0
        assert renew(permits, "a", 8, 4) == 4
    assert renew(permits, "b", 4, 4) == 4


def test_a_clock_set_back_keeps_no_permit_of_the_dead(permits):
    """When TIME goes back an hour, a dead worker's permits still come back with the end of its lease."""
    assert renew(permits, "dead", 8, 0) == 8
    permits.set_time(permits.us - HOUR_US)
    assert renew(permits, "b", 8, 0) == 0
    permits.set_time(permits.us + LEASE_US)
    assert renew(permits, "b", 8, 0) == 8


def test_permits_that_a_takeover_forgot_are_not_granted_again(permits):
    """After a fail-over that lost leases, workers keep what they had, and nobody gets what another may still use."""
    assert renew(permits, "a", 8, 0) == 8
    before = Server(permits)
    renew(permits, "b", 4, 0)
    assert renew(permits, "a", 8, 2, had=8) == 4
    assert renew(permits, "b", 4, 0) == 4
    before.take_over()
    assert renew(permits, "a", 8, 2, had=4) == 4
    assert renew(permits, "b", 4, 4, had=4) == 4
    permits.set_time(permits.us + LEASE_US // 4)
    assert renew(permits, "b", 4, 4) == 4
    assert renew(permits, "a", 8, 4) == 4


def test_a_clock_set_ahead_takes_no_permit_from_who_renews(permits):
    """When TIME jumps ahead by half a lease, nobody gets the permits of a worker that renews every quarter of it."""
    assert renew(permits, "a", 8, 8, had=0) == 8
    permits.set_time(permits.us + LEASE_US // 4 + LEASE_US // 2)
    assert renew(permits, "b", 8, 0) == 0
    assert renew(permits, "a", 8, 8) == 8


def test_permits_that_happen_to_be_free_are_not_lent_twice(redis_url):
    """100 permits that their holder does not use now stay its own until it says so; 50 wanted elsewhere wait."""
    fleet = Fleet(redis_url, rules())
    renew(fleet, "first", 0, 0, limit=100)
    fleet.set_time(fleet.us + LEASE_US)
    assert renew(fleet, "a", 100, 0, limit=100) == 100
    assert renew(fleet, "b", 50, 0, limit=100) == 0
    assert renew(fleet, "a", 100, 100, limit=100) == 100
    assert renew(fleet, "b", 50, 0, limit=100) == 0
    assert renew(fleet, "a", 100, 60, limit=100) == 60
    assert renew(fleet, "b", 50, 0, limit=100) == 40


@pytest.mark.parametrize("first_to_ask", ["who knows", "who does not"])
def test_a_takeover_that_missed_grants_gives_none_of_them_again(redis_url, first_to_ask):
    """However many grants a new server missed, and whoever asks it first, starts stay an emission apart."""
    fleet = Fleet(redis_url, rules("1000/second"))
    knows, others = fleet.warm(), [Worker("b"), Worker("c")]
    for worker in (knows, *others):
        fleet.reserve(worker, 10)
    fleet.set_time(fleet.us + 300_000)
    before = Server(fleet)
    for _ in range(3):
        fleet.reserve(knows, 100)
    before.take_over()
    order = [knows, *others] if first_to_ask == "who knows" else [*others, knows]
    end = fleet.us + 3_000_000
    while fleet.us < end:
        for worker in order:
            fleet.reserve(worker, 100)
        fleet.set_time(fleet.us + 50_000)
    starts = sorted(start for worker in order for start in worker.starts_us)
    assert min(after - before for before, after in pairwise(starts)) >= (1_000_000 + GUARD_US) / 1000 - 1
    assert starts[-1] > end


def test_a_worker_that_saw_time_jump_ahead_begins_a_new_life(redis_url):
    """One worker that saw TIME jump ahead keeps all starts off until the slots granted before are over."""
    fleet = Fleet(redis_url, rules("1000/second"))
    worker, other = fleet.warm(), Worker("b")
    boot = fleet.reserve(worker, 100).boot
    fleet.set_time(fleet.us + 5_000_000)
    worker.stepped = True
    reply = fleet.reserve(worker, 100)
    assert (reply.boot != boot, reply.starts_us) == (True, [])
    changed = fleet.us
    fleet.run([other], 1, calls=[100])
    assert changed + 2 * HORIZON_US <= other.starts_us[0] <= changed + 4 * HORIZON_US


def test_a_pause_outlasts_a_clock_that_is_set_back(redis_url):
    """A pause is as long as it was told when TIME goes back within it, neither for ever nor over at once."""
    fleet = Fleet(redis_url, rules("100/second"))
    worker = fleet.warm()
    fleet.pause(2_000_000)
    fleet.set_time(fleet.us - HOUR_US)
    assert fleet.reserve(worker, 1).pause_us == 2_000_000
    fleet.set_time(fleet.us + 2_000_000 - LEAD_US)
    assert len(fleet.reserve(worker, 1).starts_us) == 1


@pytest.mark.parametrize("rate", ["2/second", "5/second", "6/minute"])
def test_a_horizon_is_never_smaller_than_an_emission(redis_url, rate):
    """However low the rate, a lone worker leaves nothing of it unused."""
    fleet = Fleet(redis_url, rules(rate))
    worker = fleet.warm()
    fleet.run([worker], 60, calls=[3])
    (clock,) = fleet.clocks
    gaps = [after - before for before, after in pairwise(worker.starts_us)]
    assert max(gaps) <= (clock.window_us + GUARD_US) / clock.amount + 1


def test_no_worker_starves_however_long_the_others_have_waited(redis_url):
    """A worker that joins fifteen that are always waiting starts a call within two turns of all, and then its share."""
    fleet = Fleet(redis_url, rules("20/second"))
    fleet.warm()
    crowd = [Worker(f"w{index}") for index in range(15)]
    fleet.run(crowd, 8, calls=[128] * 15)
    joined, late = fleet.us, Worker("late")
    fleet.run([*crowd, late], 16, calls=[*[128] * 15, 1])
    assert late.starts_us[0] - joined <= 2_000_000
    assert len(late.starts_us) >= 0.9 * 20 * 16 / 16
    everything = [start for worker in (*crowd, late) for start in worker.starts_us]
    assert worst_window(everything, 1_000_000) <= 20
