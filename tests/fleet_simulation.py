"""A fleet under load, second by second: jobs arrive, workers start late and work, an autoscaler looks and decides.

A fluid model of one API: nothing of Callmill but the decision itself. What the autoscaler is told is noisy.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

from msgspec import Struct

from callmill.overview.scaling_window import ScalingWindow
from callmill.overview.workers_wanted import ApiLoad, FleetLoad, ScalingRules, workers_wanted

ROOM = 500
LOOK_EVERY_S = 5


class World(Struct, kw_only=True):
    """What the fleet meets.

    Attributes:
        arrivals: Jobs that arrive in a second -> from the second.
        limit_per_s: Calls per second that the API grants.
        latency_s: Of a call, by the second.
        cpu_us: Of a call.
        stopped: Whether no call may start, by the second.
        start_s: From the decision for a worker to its first call.
        noise: How far off what is measured is, as a share.
        rules: Of the autoscaler.
    """

    arrivals: Callable[[int], float]
    limit_per_s: float | None = None
    latency_s: Callable[[int], float] = lambda _: 0.2
    cpu_us: float = 200.0
    stopped: Callable[[int], bool] = lambda _: False
    start_s: tuple[int, int] = (5, 30)
    noise: float = 0.2
    rules: ScalingRules = ScalingRules(most=100)


class Run(Struct):
    """What happened, by the second."""

    wanted: list[int]
    working: list[int]
    waiting: list[float]
    done: float

    @property
    def turns(self) -> int:
        """How often the number changed its direction."""
        steps = [after - before for before, after in pairwise(self.wanted) if after != before]
        return sum((one > 0) != (other > 0) for one, other in pairwise(steps))


def simulate(world: World, seconds: int, seed: int = 1) -> Run:
    """Run a fleet that begins with nobody."""
    chance, window = random.Random(seed), ScalingWindow()
    run, starting = Run([], [], [], 0.0), list[int]()
    waiting = 0.0
    working = steady = 0
    for second in range(seconds):
        waiting += world.arrivals(second)
        working += sum(at <= second for at in starting)
        starting = [at for at in starting if at > second]
        rate = _rate(world, second, working, waiting)
        waiting, run.done = max(0.0, waiting - rate), run.done + rate
        if second % LOOK_EVERY_S == 0:
            load = _told(world, chance, _Now(second, waiting, rate * world.latency_s(second), rate, working))
            wanted = workers_wanted(load, world.rules).wanted
            steady = window.steady(wanted, second, running=working + len(starting))
            missing = steady - working - len(starting)
            starting += [second + chance.randint(*world.start_s) for _ in range(missing)]
            if missing < 0:  # a worker that starts is as good as one that works: it is ended first
                left = max(0, len(starting) + missing)
                working += min(0, len(starting) + missing)
                starting = starting[:left]
        run.wanted.append(steady)
        run.working.append(working)
        run.waiting.append(waiting)
    return run


def _rate(world: World, second: int, working: int, waiting: float) -> float:
    if world.stopped(second) or not working:
        return 0.0
    bounds = [working * 1e6 / world.cpu_us, working * ROOM / world.latency_s(second), waiting]
    return min(bounds if world.limit_per_s is None else [*bounds, world.limit_per_s])


class _Now(Struct):
    second: int
    waiting: float
    in_flight: float
    rate: float
    working: int


def _told(world: World, chance: random.Random, now: _Now) -> FleetLoad:
    def noisy(value: float) -> float:
        return value * chance.uniform(1 - world.noise, 1 + world.noise)

    api = ApiLoad(
        api="openai",
        waiting=noisy(now.waiting),
        in_flight=round(noisy(now.in_flight)),
        calls_per_s=now.rate if world.limit_per_s else noisy(now.rate),  # granted, or told by what is in flight
        latency_s=noisy(world.latency_s(now.second)) if now.second else None,
        limit_per_s=world.limit_per_s,
        limit="limit",
        room=ROOM,
        stopped="paused" if world.stopped(now.second) else "",
    )
    cpu_us = noisy(world.cpu_us) if now.rate else None
    return FleetLoad(apis=[api], workers=now.working, calls_per_s=now.rate, cpu_us_per_call=cpu_us)


def steps(*parts: tuple[int, float]) -> Callable[[int], float]:
    """Return arrivals that hold from a second on."""
    return lambda second: next((rate for since, rate in reversed(parts) if second >= since), 0.0)
