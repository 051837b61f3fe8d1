"""CPU of a worker per call, against a bare asyncio loop and against plain Celery, in alternating runs.

The worker does everything that it does for users: leases, the limiter's permission for every call, idempotency keys,
recorded outcomes, status reports. CPU counts from the first recorded outcomes to the last, as it does for the
baselines: an interpreter's start vanishes in long runs.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Literal

from baselines.celery_runs import PlainCelery
from child import run_script
from figure import Figure
from msgspec import Struct, field
from scale import Scale
from stage import Stage
from worker_run import Run, cpu_figure, run_to_end, speed_figure

_OUT_OF_REACH = (20_000, 1_000_000)
"""Limits in calls a second, more than one process can do: what they cost is the pacing, not the waiting."""


class Runs(Struct, frozen=True):
    """The runs of everybody; those of one round stand at the same place."""

    ours: list[Run] = field(default_factory=list)
    paced: dict[int, list[Run]] = field(default_factory=lambda: {rate: [] for rate in _OUT_OF_REACH})
    aiohttp: list[Run] = field(default_factory=list)
    pyreqwest: list[Run] = field(default_factory=list)
    requests: list[Run] = field(default_factory=list)
    celery: list[Run] = field(default_factory=list)


def measure(scale: Scale) -> list[Figure]:
    """Run Callmill and the baselines in turns."""
    runs = Runs()
    with ExitStack() as stages:
        stage = stages.enter_context(Stage())
        paced = {rate: stages.enter_context(Stage([f"{rate}/second"])) for rate in _OUT_OF_REACH}
        for _ in range(scale.rounds):
            runs.aiohttp.append(_run_bare("aiohttp", scale.bare_calls, stage))
            runs.ours.append(run_to_end(stage, scale.calls))
            for rate, of_rate in runs.paced.items():
                of_rate.append(run_to_end(paced[rate], scale.calls))
            runs.celery.append(Run(*PlainCelery(stage).run_worker(scale.slow_calls)))
            runs.pyreqwest.append(_run_bare("pyreqwest", scale.bare_calls, stage))
            runs.requests.append(_run_bare("requests", scale.slow_calls, stage))
    return [*_cpu(runs), *_speed(runs)]


def _run_bare(client: Literal["aiohttp", "pyreqwest", "requests"], calls: int, stage: Stage) -> Run:
    took = run_script("baselines.bare_loop", client, calls, f"{stage.api.url}/ok")
    return Run(took["cpu_us"], took["calls_per_s"])


def _cpu(runs: Runs) -> list[Figure]:
    name, loop = "worker CPU per call", "bare aiohttp loop"
    note = f"{min(run.cpu_us_with_start for run in runs.ours):.0f} us with the interpreter's start"
    return [
        cpu_figure(name, runs.ours, loop, runs.aiohttp, must=1.0, aim=0.75, note=note),
        *(
            cpu_figure(f"{name}, limit of {rate:,}/s out of reach", of_rate, loop, runs.aiohttp, must=1.05, aim=0.8)
            for rate, of_rate in runs.paced.items()
        ),
        cpu_figure(name, runs.ours, "plain Celery + requests", runs.celery, must=1 / 25, aim=1 / 40),
        cpu_figure(name, runs.ours, "bare pyreqwest loop, the floor", runs.pyreqwest),
        cpu_figure(name, runs.ours, "requests.Session, 100 threads", runs.requests),
    ]


def _speed(runs: Runs) -> list[Figure]:
    name = "calls of one worker"
    return [
        *(
            speed_figure(
                f"{name}, limit of {rate:,}/s out of reach", of_rate, "no limits", runs.ours, must=0.9, aim=1.0
            )
            for rate, of_rate in runs.paced.items()
        ),
        speed_figure(name, runs.ours, "bare aiohttp loop", runs.aiohttp),
        speed_figure(name, runs.ours, "plain Celery + requests", runs.celery),
        speed_figure(name, runs.ours, "bare pyreqwest loop, the floor", runs.pyreqwest),
        speed_figure(name, runs.ours, "requests.Session, 100 threads", runs.requests),
    ]
