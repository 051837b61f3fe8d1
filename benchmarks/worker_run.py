"""Runs of worker processes: calls of a batch from its first outcomes to its last, or for a while in its middle."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from statistics import mean
from typing import Self

from child import Child
from figure import Figure
from machine import Watch
from msgspec import Struct
from proc import cpu_s
from redis_server import flush
from stage import Stage
from workload import jobs

_POLL_S = 0.05
_TIMEOUT_S = 300.0
_STARTS_S = 3.0
_LOOK_EVERY_S = 0.5
_REACHED = 0.95
_ALL = 1_000
"""More batches than a run has."""


class Run(Struct, frozen=True):
    """What calls took.

    Attributes:
        cpu_us: CPU time of each call, in microseconds.
        calls_per_s: Calls made in a second.
        cpu_us_with_start: The same with the start of the process.
        waiting: Calls that waited in the processes, on average.
        busy: Share of the machine's CPU time in use.
    """

    cpu_us: float
    calls_per_s: float
    cpu_us_with_start: float = 0.0
    waiting: float = 0.0
    busy: float = 0.0


def run_to_end(stage: Stage, calls: int, *, warm_up: int = 0) -> Run:
    """Let a worker work off a batch, after one that is not counted; CPU counts from the first outcomes to the last."""
    flush(stage.redis_url)
    with stage.start_worker() as worker:
        stage.await_workers(worker)
        if warm_up:
            stage.client.submit(jobs(warm_up, "/ok"), name="warm-up").wait(_TIMEOUT_S)
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


def run_in_the_middle(
    stage: Stage, work: AbstractContextManager[None], *, measured_s: float, processes: int = 1, **settings: object
) -> Run:
    """Let workers make calls while there is work, and measure for a while before it is done."""
    flush(stage.redis_url)
    with ExitStack() as stack:
        workers = [stack.enter_context(stage.start_worker("celery", **settings)) for _ in range(processes)]
        stage.await_workers(*workers)
        stack.enter_context(work)
        time.sleep(_STARTS_S)
        with Watch() as watch:
            before = _Look.at(stage, workers)
            waiting = []
            while time.perf_counter() < before.at_s + measured_s:
                time.sleep(_LOOK_EVERY_S)
                waiting.append(sum(lane.waiting for status in stage.workers() for lane in status.lanes))
            after = _Look.at(stage, workers)
        if all(progress.ended for progress in stage.client.batches(_ALL)):
            raise RuntimeError("all calls were made before the end of the measurement")
    calls = after.done - before.done
    cpu_us, calls_per_s = (after.cpu_s - before.cpu_s) / calls * 1e6, calls / (after.at_s - before.at_s)
    return Run(cpu_us, calls_per_s, waiting=mean(waiting), busy=watch.load.busy)


@contextmanager
def submitted(stage: Stage, path: str, sizes: Iterable[int]) -> Iterator[None]:
    """Submit batches of these sizes."""
    for size in sizes:
        stage.client.submit(jobs(size, path))
    yield


@contextmanager
def kept_pending(stage: Stage, path: str, most: int) -> Iterator[None]:
    """Submit one batch so slowly that never more than ``most`` of its jobs are without an outcome."""
    over = threading.Event()
    endless = itertools.takewhile(lambda _: not over.is_set(), jobs(sys.maxsize, path))
    with ThreadPoolExecutor(1) as background:
        submission = background.submit(stage.client.submit, endless, max_pending=most)
        try:
            yield
        finally:
            over.set()
    submission.result()


class _Look(Struct, frozen=True):
    """A moment: when, calls done, CPU seconds of the workers."""

    at_s: float
    done: int
    cpu_s: float

    @classmethod
    def at(cls, stage: Stage, workers: Sequence[Child]) -> Self:
        done = sum(progress.done for progress in stage.client.batches(_ALL))
        return cls(time.perf_counter(), done, sum(cpu_s(worker.pid) for worker in workers))


def missed_rate(runs: Sequence[Run], per_s: float) -> str:
    """Say that runs were slower than they were paced; nothing if they were not."""
    slowest = min(run.calls_per_s for run in runs)
    return f"{slowest:,.0f} of {per_s:,.0f} calls/s made" if slowest < _REACHED * per_s else ""


def cpu_figure(
    name: str,
    runs: Sequence[Run],
    baseline_name: str,
    baseline: Sequence[Run],
    *,
    must: float | None = None,
    aim: float | None = None,
    note: str = "",
    doubt: str = "",
) -> Figure:
    """Return the figure of CPU time per call, against a baseline."""
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
        doubt=doubt,
    )


def speed_figure(
    name: str,
    runs: Sequence[Run],
    baseline_name: str,
    baseline: Sequence[Run],
    *,
    must: float | None = None,
    aim: float | None = None,
    note: str = "",
) -> Figure:
    """Return the figure of calls per second, against a baseline."""
    return Figure(
        name=name,
        unit="calls/s",
        runs=tuple(run.calls_per_s for run in runs),
        baseline_name=baseline_name,
        baseline_runs=tuple(run.calls_per_s for run in baseline),
        judged="ratio",
        better="higher",
        must=must,
        aim=aim,
        note=note,
    )
