"""What the permits script promises, case by case, on a Redis whose time the test sets."""

from __future__ import annotations

import pytest
from limits_kit import Fleet, rules

LEASE_US = 10_000_000


@pytest.fixture
def fleet(redis_url):
    """Return a fleet whose permits are past the time in which nobody knows who holds what."""
    made = Fleet(redis_url, rules())
    made.permits("first", 0, 0, 0, limit=8, lease_us=LEASE_US)
    made.set_time(made.us + LEASE_US)
    return made


def renew(fleet, worker, want, used, *, limit=8):
    """Renew a lease a moment later; return what is held."""
    fleet.set_time(fleet.us + 1)
    return fleet.permits(worker, want, used, used, limit=limit, lease_us=LEASE_US).held


def test_a_lone_worker_gets_all_it_wants(fleet):
    """Permits that nobody else wants are lent out entirely, and no more than there are."""
    assert renew(fleet, "a", 5, 0) == 5
    assert renew(fleet, "a", 20, 5) == 8


def test_contended_permits_come_to_equal_shares(fleet):
    """As calls end, who holds more than its share gives it to who lacks permits."""
    assert renew(fleet, "a", 8, 0) == 8
    assert renew(fleet, "b", 8, 0) == 0
    busy = fleet.permits("a", 8, 8, 8, limit=8, lease_us=LEASE_US)
    assert (busy.held, busy.goal, busy.unmet) == (8, 4, 1)
    assert renew(fleet, "a", 8, 6) == 6
    assert renew(fleet, "b", 8, 0) == 2
    assert renew(fleet, "a", 8, 3) == 4
    assert renew(fleet, "b", 8, 2) == 4


def test_equal_shares_leave_no_permit_unused(fleet):
    """Of 14 permits four workers that want more hold 3 or 4 each, and all 14 together."""
    held = dict.fromkeys("abcd", 0)
    for _ in range(6):
        for worker in held:
            held[worker] = renew(fleet, worker, 20, min(held[worker], 3), limit=14)
    assert sum(held.values()) == 14
    assert set(held.values()) == {3, 4}


def test_permits_of_the_dead_come_back_with_the_end_of_the_lease(fleet):
    """A worker that does not renew keeps its permits for its lease, not a moment longer."""
    assert renew(fleet, "dead", 8, 0) == 8
    fleet.set_time(fleet.us + LEASE_US - 2)
    assert renew(fleet, "b", 8, 0) == 0
    assert renew(fleet, "b", 8, 0) == 8


def test_fewer_permits_than_workers_go_round(fleet):
    """One permit among five workers goes to each in the order in which they asked."""
    order, turns = [], [f"w{index}" for index in range(5)]
    assert renew(fleet, "w0", 1, 0, limit=1) == 1
    for worker in turns[1:]:
        assert renew(fleet, worker, 1, 0, limit=1) == 0
    holder = "w0"
    for _ in range(10):
        assert fleet.permits(holder, 1, 1, 1, limit=1, lease_us=LEASE_US).goal == 0
        renew(fleet, holder, 1, 0, limit=1)
        holder = next(worker for worker in reversed(turns) if renew(fleet, worker, 1, 0, limit=1) == 1)
        order.append(holder)
    assert order == [f"w{index % 5}" for index in range(1, 11)]


def test_forgotten_leases_are_waited_for(fleet):
    """After lost state workers keep what they had, and nobody gets more until all have had time to say."""
    assert renew(fleet, "a", 6, 0) == 6
    fleet.wipe()
    assert renew(fleet, "new", 8, 0) == 0
    assert renew(fleet, "a", 6, 6) == 6
    fleet.set_time(fleet.us + LEASE_US // 3)
    assert renew(fleet, "new", 8, 0) == 2


def test_a_lowered_limit_cuts_nothing_in_flight(fleet):
    """Calls in flight keep their permits when the limit is lowered; new ones are not granted above it."""
    assert renew(fleet, "a", 8, 0) == 8
    assert renew(fleet, "a", 8, 8, limit=3) == 8
    assert renew(fleet, "a", 8, 2, limit=3) == 3
