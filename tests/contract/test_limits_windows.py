"""Fixed windows whose beginning is known, and quanta, on a Redis whose time the test sets."""

from __future__ import annotations

from collections import Counter

import pytest
from limits_kit import GUARD_US, Fleet, Worker, rules, worst_window
from msgspec.structs import replace

from callmill.config.limit_spec import Enforcer

HOUR_US = 3_600_000_000


def aligned(redis_url, limit: str, opens_in_us: int, blur_us: int) -> tuple[Fleet, int]:
    """Return a fleet that just learnt when a window opens, and when that is."""
    fleet = Fleet(redis_url, rules(limit, enforcer=Enforcer.FIXED))
    fleet.warm()
    assert fleet.feed(0, "aligned", opens_in_us, blur_us) == 1
    return fleet, fleet.us + opens_in_us


@pytest.mark.parametrize(
    ("limit", "amount", "window_us", "blur_us"),
    [
        ("10/second", 10, 1_000_000, 20_000),
        ("100/second", 100, 1_000_000, 60_000),
        ("1000/second", 1000, 1_000_000, 5_000),
        ("60/minute", 60, 60_000_000, 1_000_000),
        ("1000/minute", 1000, 60_000_000, 1_100_000),
    ],
)
def test_known_windows_are_filled_and_never_exceeded(redis_url, limit, amount, window_us, blur_us):
    """Each window of the server takes its amount, all of it inside by the blur and the guard, and none takes more."""
    fleet, opens = aligned(redis_url, limit, 300_000, blur_us)
    workers = [Worker(f"w{index}") for index in range(3)]
    fleet.run(workers, 8 * window_us / 1e6, calls=[128] * 3)
    starts = [start for worker in workers for start in worker.starts_us]
    filled = Counter((start - opens) // window_us for start in starts)
    assert max(filled.values()) <= amount
    assert min(filled[turn] for turn in range(1, 6)) >= 0.995 * amount
    inside = [(start - opens) % window_us for start in starts]
    assert min(inside) >= blur_us
    assert max(inside) <= window_us - blur_us - GUARD_US + 1


def test_learning_in_full_flow_exceeds_no_window(redis_url):
    """When windows become known while slots are booked across a boundary, no real window takes more than its amount."""
    for opens_in_us in range(0, 1_000_000, 90_000):
        fleet = Fleet(redis_url, rules("100/second", enforcer=Enforcer.FIXED))
        fleet.wipe()
        worker = fleet.warm()
        fleet.run([worker], 2.0, calls=[64])
        fleet.feed(0, "aligned", opens_in_us, 100_000)
        opens = fleet.us + opens_in_us
        fleet.run([worker], 4.0, calls=[64])
        for error in (-100_000, 0, 100_000):
            assert max(Counter((start - opens - error) // 1_000_000 for start in worker.starts_us).values()) <= 100


def test_better_knowledge_of_the_same_windows_wastes_nothing(redis_url):
    """Ever sharper headers move the windows a little: most of every window is used meanwhile, and all of it then."""
    fleet, opens = aligned(redis_url, "100/second", 300_000, 100_000)
    worker = Worker("w")
    for step in range(16):
        fleet.run([worker], 0.5, calls=[64])
        blur = 90_000 - 5_000 * step
        fleet.feed(0, "aligned", opens - fleet.us + (blur // 2 if step % 2 else -blur // 2), blur)
    fleet.run([worker], 5.0, calls=[64])
    filled = Counter((start - opens) // 1_000_000 for start in worker.starts_us)
    assert max(filled.values()) <= 100
    assert min(filled[turn] for turn in range(1, 9)) >= 90
    assert {filled[turn] for turn in range(9, 11)} == {100}


def test_windows_that_moved_are_followed(redis_url):
    """A header that contradicts what was known is believed, at the price of one window."""
    fleet, _ = aligned(redis_url, "100/second", 300_000, 20_000)
    worker = Worker("w")
    fleet.run([worker], 2.0, calls=[64])
    opens = fleet.us + 700_000
    assert fleet.feed(0, "aligned", 700_000, 20_000) == 1
    assert fleet.feed(0, "aligned", 700_000, 30_000) == 0
    fleet.run([worker], 5.0, calls=[64])
    filled = Counter((start - opens) // 1_000_000 for start in worker.starts_us)
    assert [filled[turn] for turn in range(1, 4)] == [100] * 3
    assert max(filled.values()) <= 100


def test_a_new_life_forgets_where_windows_begin(redis_url):
    """After a jump of TIME nobody knows how the windows lie on it: starts are paced with the guard again."""
    fleet, _ = aligned(redis_url, "100/second", 300_000, 20_000)
    worker = Worker("w")
    fleet.run([worker], 2.0, calls=[64])
    fleet.jump(-5_000_000)
    worker.starts_us.clear()
    fleet.run([worker], 3.0, calls=[64])
    assert worst_window(worker.starts_us, 1_000_000 + GUARD_US - 100) <= 100


def test_a_spent_quota_comes_back_when_the_server_resets_it(redis_url):
    """Where the server's hour is known, a spent quota is whole again right after its reset."""
    fleet, opens = aligned(redis_url, "40/hour", 600_000_000, 1_000_000)
    worker = Worker("w")
    fleet.reserve(worker, 40)
    spent = len(worker.starts_us)
    fleet.set_time(opens - 1)
    assert fleet.reserve(worker, 40).starts_us == []
    fleet.set_time(opens + 1_000_000 + GUARD_US)
    assert (spent, len(fleet.reserve(worker, 40).starts_us)) == (40, 40)
    fleet.set_time(opens + HOUR_US)
    assert fleet.reserve(worker, 40).starts_us == []
    fleet.set_time(opens + HOUR_US + 1_500_000)
    assert len(fleet.reserve(worker, 40).starts_us) == 40


def test_a_quantum_bounds_every_part_of_a_window(redis_url):
    """600 a minute counted by the second never puts more than ten into any second, and still uses 99 %."""
    fleet = Fleet(redis_url, replace(rules("600/minute"), quantum_s=1.0))
    fleet.warm()
    workers = [Worker(f"w{index}") for index in range(3)]
    fleet.run(workers, 20, calls=[64] * 3)
    starts = [start for worker in workers for start in worker.starts_us]
    assert worst_window(starts, 1_000_000 + GUARD_US - 10) == 10
    assert len(starts) >= 0.99 * 200


def test_a_heavy_call_is_not_forgotten_by_a_pause(redis_url):
    """After a pause that is shorter than what a heavy call occupies, the rest of that time is kept."""
    fleet = Fleet(redis_url, rules("10/second"))
    worker = fleet.warm()
    heavy = [(20, 0, 0, 0)]
    (start,) = fleet.reserve_weighted(worker, heavy)
    fleet.set_time(start + 1)
    fleet.pause(250_000)
    fleet.set_time(start + 1_900_000)
    (following,) = fleet.reserve_weighted(worker, [(1, 0, 0, 0)])
    assert following - start >= 2 * (1_000_000 + GUARD_US)
