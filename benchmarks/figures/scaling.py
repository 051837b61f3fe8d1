"""What a second worker process adds, at an API that takes 200 ms to answer and has no limit.

A process opens 500 connections to an API unless told otherwise, so the latency bounds it, at 2,500 calls a second. Two
do twice as much while the machine has the CPU for them, and for nginx, Redis and this program. So the machine's load
stands beside.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from api_server import LATENCY_MS
from figure import Figure
from msgspec import Struct
from proc import cpu_s
from redis_server import flush
from scale import Scale
from stage import Stage
from workload import jobs

_CONNECTIONS = 500
_LEAST_RATIO = 1.9
_STARTS_S = 3.0


class _Look(Struct, frozen=True):
    """A moment: when, calls done, CPU seconds of the workers, CPU time of the machine, and of that idle."""

    at_s: float
    done: int
    cpu_s: float
    machine: int
    idle: int


class _Run(Struct, frozen=True):
    """What workers did in the middle of a batch: calls per second, CPU of each, and how busy all cores were."""

    calls_per_s: float
    cpu_us: float
    busy: float


def measure(scale: Scale) -> list[Figure]:
    """Run one process and two, in turns."""
    with Stage() as stage:
        pairs = [(_run(stage, 1, scale.scaled_s), _run(stage, 2, scale.scaled_s)) for _ in range(scale.rounds)]
    one, two = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    most = _CONNECTIONS * 1000 // LATENCY_MS
    return [
        Figure(
            name="calls of two worker processes, 200 ms latency",
            unit="calls/s",
            runs=tuple(run.calls_per_s for run in two),
            baseline_name="one process",
            baseline_runs=tuple(run.calls_per_s for run in one),
            judged="ratio",
            better="higher",
            must=_LEAST_RATIO,
            note=f"the latency allows {most:,} each; cores busy: {_busy(one)} with one, {_busy(two)} with two",
        ),
        Figure(
            name="worker CPU per call, two processes",
            unit="us",
            runs=tuple(run.cpu_us for run in two),
            baseline_name="one process",
            baseline_runs=tuple(run.cpu_us for run in one),
        ),
    ]


def _run(stage: Stage, processes: int, measured_s: float) -> _Run:
    flush(stage.redis_url)
    enough = int(processes * _CONNECTIONS * 1000 / LATENCY_MS * (2 * _STARTS_S + measured_s))
    with ExitStack() as stack:
        workers = [stack.enter_context(stage.start_worker()) for _ in range(processes)]
        stage.await_workers(*workers)
        batch = stage.client.submit(jobs(enough, "/slow"))

        def look() -> _Look:
            used_s = sum(cpu_s(worker.pid) for worker in workers)
            return _Look(time.perf_counter(), batch.progress().done, used_s, *_machine())

        time.sleep(_STARTS_S)
        before = look()
        time.sleep(measured_s)
        after = look()
        ended = batch.progress().ended
        batch.cancel()
    if ended:
        raise RuntimeError(f"all {enough} calls were made before the end of the measurement")
    calls = after.done - before.done
    return _Run(
        calls / (after.at_s - before.at_s),
        (after.cpu_s - before.cpu_s) / calls * 1e6,
        1 - (after.idle - before.idle) / (after.machine - before.machine),
    )


def _machine() -> tuple[int, int]:
    """Return the CPU time of all cores since the machine's start, and what of it they were idle."""
    # user nice system idle iowait irq softirq steal; guests are in user already
    times = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(times), times[3] + times[4]


def _busy(runs: Sequence[_Run]) -> str:
    return f"{max(run.busy for run in runs):.0%}"
