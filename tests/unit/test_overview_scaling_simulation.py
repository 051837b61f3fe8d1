"""A simulated fleet under load: its size follows, does not swing, and is never more than limits can use."""

from __future__ import annotations

import math

import pytest
from fleet_simulation import ROOM, World, simulate, steps

from callmill.overview.scaling_window import DOWN_AFTER_S
from callmill.overview.workers_wanted import ScalingRules

SEEDS = range(8)
MILLION = 1_000_000


def at_once(jobs):
    """Return arrivals: so many jobs in the tenth second."""
    return lambda second: jobs if second == 10 else 0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("per_s", [50, 3900, 9000])
def test_steady_load_settles(seed, per_s):
    """Under a steady load the number goes up to what serves it, and then at most a little down; nothing waits."""
    run = simulate(World(arrivals=steps((0, per_s))), 1200, seed)
    assert run.turns <= 1
    assert max(run.wanted[-600:]) - run.wanted[-1] <= 1
    assert run.waiting[-1] == 0
    assert run.wanted[-1] <= math.ceil(per_s * 200 / 0.8e6) * 2 + 1


@pytest.mark.parametrize("seed", SEEDS)
def test_step_up_and_down_is_followed_once(seed):
    """Ten times the load for a while: more workers, then fewer, without a swing in between."""
    run = simulate(World(arrivals=steps((0, 2000), (300, 20_000), (700, 2000))), 1200, seed)
    assert run.turns == 1
    assert max(run.wanted) >= 4
    assert run.wanted[-1] <= 2
    assert run.waiting[-1] == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_burst_is_worked_off_and_all_go(seed):
    """A million jobs at once are done soon after workers have started, and then nobody is left."""
    run = simulate(World(arrivals=at_once(MILLION)), 300, seed)
    assert run.turns == 1
    assert run.done == pytest.approx(MILLION)
    assert next(second for second, jobs in enumerate(run.waiting) if second > 10 and not jobs) < 120
    assert (run.wanted[-1], run.working[-1]) == (0, 0)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("limit_per_s", "latency_s", "most"), [(500, 0.2, 1), (20_000, 0.2, 10), (20_000, 0.05, 6)])
def test_limit_bounds_the_number(seed, limit_per_s, latency_s, most):
    """However much waits, there are never more workers than the limit can use, as it is measured: 20 % off at most."""
    jobs = 400 * limit_per_s
    world = World(arrivals=at_once(jobs), limit_per_s=limit_per_s, latency_s=lambda _: latency_s)
    run = simulate(world, 700, seed)
    needed = max(limit_per_s * world.cpu_us / 0.8e6, limit_per_s * latency_s / ROOM)
    assert max(run.wanted) <= math.ceil(1.2 * needed) == most
    assert max(run.wanted) >= math.floor(needed)
    assert run.turns <= 1
    assert run.done == pytest.approx(jobs)
    assert run.wanted[-1] == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_slow_answers_want_more_room_once(seed):
    """Where calls suddenly take ten times as long, more processes hold them, until they are quick again."""
    world = World(arrivals=steps((0, 3000)), latency_s=lambda second: 2.0 if 300 < second < 800 else 0.2)
    run = simulate(world, 1400, seed)
    assert run.turns <= 2
    assert max(run.wanted) >= 3000 * 2.0 / 500
    assert run.wanted[-1] <= 2
    assert run.waiting[-1] == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_paused_api_has_no_workers_and_gets_them_back(seed):
    """While an API is paused nobody is kept for it; when it goes on, what has gathered is worked off."""
    world = World(arrivals=steps((0, 3000), (600, 0)), stopped=lambda second: 200 <= second < 400)
    run = simulate(world, 1000, seed)
    assert run.wanted[200 + int(DOWN_AFTER_S) + 10 : 400] == [0] * (400 - 270)
    assert run.turns <= 3
    assert run.done == pytest.approx(600 * 3000)
    assert run.wanted[-1] == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_slow_starts_cause_no_swing(seed):
    """Workers that need a minute to begin are not asked for again and again."""
    run = simulate(World(arrivals=steps((0, 9000)), start_s=(50, 70), rules=ScalingRules(most=30)), 1500, seed)
    assert run.turns <= 1
    assert run.waiting[-1] == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_regular_bursts_do_not_restart_workers(seed):
    """Bursts that come more often than the window is long find their workers still there."""
    run = simulate(World(arrivals=lambda second: 60_000 if second % 40 == 0 else 0), 1200, seed)
    assert run.turns <= 1
    assert 0 not in run.wanted[1:]
