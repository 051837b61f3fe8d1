"""What a second worker process adds where nothing limits the calls.

At an API that takes 200 ms to answer, latency bounds a process: it opens 500 connections unless told otherwise, so it
makes 2,500 calls a second, and two make twice as many while the machine has the CPU for them. At an API that answers at
once only the cores bound it, which workers, nginx, Redis and this program share: where there are two of them, one
process and its servers leave the second little. So the machine's load stands beside.
"""

from __future__ import annotations

from collections.abc import Sequence

from api_server import LATENCY_MS
from figure import Figure
from msgspec import Struct
from scale import Scale
from stage import Stage
from worker_run import Run, cpu_figure, run_in_the_middle, speed_figure, submitted

_CONNECTIONS = 500
_UNMEASURED_S = 6
"""Seconds of work beside those that are measured."""


class _Api(Struct, frozen=True):
    """A path of the API, calls a second that one process makes at most, and bounds of what two make."""

    path: str
    name: str
    most_per_s: int
    must: float
    aim: float


_SLOW = _Api("/slow", f"{LATENCY_MS} ms latency", _CONNECTIONS * 1000 // LATENCY_MS, 1.9, 1.95)
_FAST = _Api("/ok", "no latency", 20_000, 1.8, 1.95)


def measure(scale: Scale) -> list[Figure]:
    """Run one process and two, in turns."""
    with Stage() as stage:
        return [figure for api in (_SLOW, _FAST) for figure in _figures(stage, api, scale)]


def _figures(stage: Stage, api: _Api, scale: Scale) -> list[Figure]:
    one: list[Run] = []
    two: list[Run] = []
    for _ in range(scale.rounds):
        for processes, runs in enumerate((one, two), 1):
            enough = processes * api.most_per_s * (scale.scaled_s + _UNMEASURED_S)
            work = submitted(stage, api.path, [enough])
            runs.append(run_in_the_middle(stage, work, measured_s=scale.scaled_s, processes=processes))
    note = f"cores busy: {_busy(one)} with one, {_busy(two)} with two"
    if api is _SLOW:
        note = f"the latency allows {api.most_per_s:,} each; {note}"
    speed = f"calls of two worker processes, {api.name}"
    return [
        speed_figure(speed, two, "one process", one, must=api.must, aim=api.aim, note=note),
        cpu_figure(f"worker CPU per call, two processes, {api.name}", two, "one process", one),
    ]


def _busy(runs: Sequence[Run]) -> str:
    return f"{max(run.busy for run in runs):.0%}"
