"""CPU of a worker per call while a limit paces it, against a bare loop of the same pace right before it.

The fewer calls a second, the less of a call's cost is the call: the process mostly wakes up and falls asleep. So each
rate has a baseline of its own. The worker's CPU time is that of its whole process, Celery's main thread included.
"""

from __future__ import annotations

from statistics import median

from child import run_script
from figure import Figure
from msgspec import Struct
from scale import Scale
from stage import Stage
from worker_run import Run, cpu_figure, missed_rate, run_to_end

_BURST = 20
_WARM_UP_S = 2


class _Rate(Struct, frozen=True):
    """Calls a second, and what the worker may use at most, as a multiple of the loop's CPU."""

    per_s: int
    must: float
    aim: float


_RATES = (_Rate(2_000, 1.0, 0.85), _Rate(500, 1.15, 1.0), _Rate(100, 1.4, 1.15))


def measure(scale: Scale) -> list[Figure]:
    """Run loop and worker in turns, at one rate after the other."""
    return [_figure(rate, scale) for rate in _RATES]


def _figure(rate: _Rate, scale: Scale) -> Figure:
    loop: list[Run] = []
    ours: list[Run] = []
    with Stage([f"{rate.per_s}/second"], burst=_BURST) as stage:
        for _ in range(scale.rounds):
            options = (rate.per_s, scale.paced_s, _WARM_UP_S, f"{stage.api.url}/ok")
            took = run_script("baselines.paced_loop", *options)
            loop.append(Run(took["cpu_us"], took["calls_per_s"]))
            ours.append(run_to_end(stage, rate.per_s * scale.paced_s, warm_up=rate.per_s * _WARM_UP_S))
    reached, by_loop = (median(run.calls_per_s for run in runs) for runs in (ours, loop))
    return cpu_figure(
        f"worker CPU per call, paced by {rate.per_s}/s",
        ours,
        "paced aiohttp loop",
        loop,
        must=rate.must,
        aim=rate.aim,
        note=f"{reached:,.0f} calls/s made, {by_loop:,.0f} by the loop",
        doubt=missed_rate([*ours, *loop], rate.per_s),
    )
