"""CPU of a worker per call, against a bare asyncio loop and against plain Celery, in alternating runs.

The worker does everything that it does for users: leases, the limiter's permission for every call, idempotency keys,
recorded outcomes, status reports. CPU counts from the first recorded outcomes to the last, as it does for the
baselines: an interpreter's start vanishes in long runs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

from baselines.celery_runs import PlainCelery
from child import run_script
from figure import Figure
from msgspec import Struct, field
from proc import cpu_s
from redis_server import flush
from scale import Scale
from stage import Stage
from workload import jobs

_POLL_S = 0.05
_TIMEOUT_S = 300.0
_UNREACHED_LIMIT = "20000/second"
"""More than one process can do: what it costs is the pacing, not the waiting."""


class Run(Struct, frozen=True):
    """What calls took: microseconds of CPU each, and how many were made in a second."""

    cpu_us: float
    calls_per_s: float
    cpu_us_with_start: float = 0.0


class Runs(Struct, frozen=True):
    """The runs of everybody; those of one round stand at the same place."""

    ours: list[Run] = field(default_factory=list)
    paced: list[Run] = field(default_factory=list)
    aiohttp: list[Run] = field(default_factory=list)
    pyreqwest: list[Run] = field(default_factory=list)
    requests: list[Run] = field(default_factory=list)
    celery: list[Run] = field(default_factory=list)


def measure(scale: Scale) -> list[Figure]:
    """Run Callmill and the baselines in turns."""
    runs = Runs()
    with Stage() as stage, Stage([_UNREACHED_LIMIT]) as paced_stage:
        for _ in range(scale.rounds):
            runs.aiohttp.append(_run_bare("aiohttp", scale.bare_calls, stage))
            runs.ours.append(_run_worker(stage, scale.calls))
            runs.celery.append(Run(*PlainCelery(stage).run_worker(scale.slow_calls)))
            runs.pyreqwest.append(_run_bare("pyreqwest", scale.bare_calls, stage))
            runs.requests.append(_run_bare("requests", scale.slow_calls, stage))
            runs.paced.append(_run_worker(paced_stage, scale.slow_calls))
    with_start_us = min(run.cpu_us_with_start for run in runs.ours)
    note = f"{with_start_us:.0f} us with the interpreter's start"
    paced = f"worker CPU per call, paced by {_UNREACHED_LIMIT}"
    return [
        _cpu(runs.ours, "bare aiohttp loop", runs.aiohttp, must=1.0, aim=0.7, note=note),
        _cpu(runs.ours, "plain Celery + requests", runs.celery, must=1 / 20, aim=1 / 40),
        _cpu(runs.ours, "bare pyreqwest loop, the floor", runs.pyreqwest),
        _cpu(runs.ours, "requests.Session, 100 threads", runs.requests),
        _cpu(runs.paced, "bare aiohttp loop", runs.aiohttp, name=paced),
        _speed(runs.ours, "bare aiohttp loop", runs.aiohttp),
        _speed(runs.ours, "plain Celery + requests", runs.celery),
        _speed(runs.ours, "bare pyreqwest loop, the floor", runs.pyreqwest),
        _speed(runs.ours, "requests.Session, 100 threads", runs.requests),
        _speed(runs.paced, "bare aiohttp loop", runs.aiohttp, name=f"calls of one worker, paced by {_UNREACHED_LIMIT}"),
    ]


def _run_bare(client: Literal["aiohttp", "pyreqwest", "requests"], calls: int, stage: Stage) -> Run:
    took = run_script("baselines.bare_loop", client, calls, f"{stage.api.url}/ok")
    return Run(took["cpu_us"], took["calls_per_s"])


def _run_worker(stage: Stage, calls: int) -> Run:
    flush(stage.redis_url)
    with stage.start_worker() as worker:
        stage.await_workers(worker)
        batch = stage.client.submit(jobs(calls, "/ok"), name="measured")
        began_s, before_s, first = time.perf_counter(), cpu_s(worker.pid), 0
        while not (progress := batch.progress()).ended:
            if not first and progress.done:
                began_s, before_s, first = time.perf_counter(), cpu_s(worker.pid), progress.done
            if time.perf_counter() - began_s > _TIMEOUT_S:
                raise RuntimeError(f"{progress.done} of {calls} calls done in time:\n{worker.log_tail()}")
            time.sleep(_POLL_S)
        wall_s, total_s = time.perf_counter() - began_s, cpu_s(worker.pid)
    if progress.succeeded != calls:
        raise RuntimeError(f"{progress.failed} of {calls} calls failed:\n{worker.log_tail()}")
    made = calls - first
    return Run((total_s - before_s) / made * 1e6, made / wall_s, total_s / calls * 1e6)


def _cpu(
    runs: Sequence[Run],
    baseline_name: str,
    baseline: Sequence[Run],
    *,
    name: str = "worker CPU per call",
    must: float | None = None,
    aim: float | None = None,
    note: str = "",
) -> Figure:
    return Figure(
        name=name,
        unit="us",
        runs=tuple(run.cpu_us for run in runs),
        baseline_name=baseline_name,
        baseline_runs=tuple(run.cpu_us for run in baseline),
        judged="ratio",
        must=must,
        aim=aim,
        note=note,
    )


def _speed(
    runs: Sequence[Run], baseline_name: str, baseline: Sequence[Run], *, name: str = "calls of one worker"
) -> Figure:
    return Figure(
        name=name,
        unit="calls/s",
        runs=tuple(run.calls_per_s for run in runs),
        baseline_name=baseline_name,
        baseline_runs=tuple(run.calls_per_s for run in baseline),
        better="higher",
    )
