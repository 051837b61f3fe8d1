"""Several processes over one limit while one of them dies or stands still."""

from __future__ import annotations

from time import monotonic

import pytest
from limits_callers import FULL, LIMIT, calling

pytestmark = pytest.mark.chaos

PERMITS = 6
CALL_S = 0.02
LEASE_S = 1.2


def test_killed_holders_break_nothing_and_leave_their_share(redis_url, tmp_path):
    """After SIGKILL of two of three processes with slots in hand, no second held too much and one uses all the rate."""
    with calling(redis_url, tmp_path) as callers:
        for process in callers.processes[:2]:
            process.kill()
            callers.more(LIMIT // 10)
        killed = monotonic()
        callers.run_until(killed + 2.1)
        verdict = callers.end()
    assert verdict.worst() <= LIMIT
    assert verdict.granted(killed + 1, killed + 2) >= FULL


def test_a_stopped_holder_fires_no_bunch_when_it_goes_on(redis_url, tmp_path):
    """Standing still for 2.5 s, a process drops what it held: no second holds too much; it takes its share again."""
    with calling(redis_url, tmp_path) as callers:
        stalled = callers.processes[0]
        with stalled.frozen():
            stopped = monotonic()
            callers.run_until(stopped + 2.5)
        awake = monotonic()
        callers.run_until(awake + 2.1)
        verdict = callers.end()
        shares = [process.granted(awake + 1, awake + 2) for process in callers.processes]
    assert verdict.worst() <= LIMIT
    assert verdict.granted(stopped + 1, stopped + 2) >= FULL
    assert sum(awake <= at < awake + 0.02 for at in stalled.starts()) <= 0.02 * LIMIT + 2
    assert min(shares) >= 0.5 * FULL / 3


def test_permits_of_a_killed_process_come_back_with_its_lease(redis_url, tmp_path):
    """Permits in use by a process that dies are used by the others after its lease, and never before."""
    limits = [f"{PERMITS} concurrent"]
    with calling(redis_url, tmp_path, limits=limits, call_s=CALL_S, lease_s=LEASE_S) as callers:
        callers.processes[0].kill()
        killed = monotonic()
        callers.run_until(killed + 2 * LEASE_S + 1)
        verdict = callers.end()
    assert verdict.most_in_flight(CALL_S) <= PERMITS
    assert verdict.within(killed + 2 * LEASE_S, killed + 2 * LEASE_S + 1) >= 0.6 * PERMITS / CALL_S


def test_permits_of_a_stopped_process_are_not_used_twice(redis_url, tmp_path):
    """A process that stood still beyond the end of its lease starts nothing on it; then it gets its share again."""
    limits = [f"{PERMITS} concurrent"]
    with calling(redis_url, tmp_path, limits=limits, call_s=CALL_S, lease_s=LEASE_S) as callers:
        stalled = callers.processes[0]
        with stalled.frozen():
            stopped = monotonic()
            callers.run_until(stopped + 2 * LEASE_S)
        awake = monotonic()
        callers.run_until(awake + LEASE_S)
        verdict = callers.end()
    assert verdict.most_in_flight(CALL_S) <= PERMITS
    assert verdict.within(awake - 0.5, awake) >= 0.5 * 0.6 * PERMITS / CALL_S
    assert sum(awake <= at for at in stalled.starts()) >= 5
