"""Batches that run at the limits of their APIs, and what was seen of it meanwhile."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from statistics import fmean

from figures.limits.arena import Arena
from figures.limits.call_times import Calls, read_calls
from figures.limits.cases import Case
from msgspec import Struct
from proc import cpu_s
from workload import jobs

from callmill.ledger.fleet import LaneStatus
from callmill.producer import Batch

PATH = "/v1/chat/completions"
SETTLING_S = 2.0
"""After the first call, until a run is measured."""

_SPARE_S = 8.0
"""Work beyond the end of a run, in seconds of the limit: nobody runs dry while it is measured."""

_FEWEST_JOBS = 8_000
"""A chunk has some hundred jobs: enough that no worker is without one."""

_FIRST_CALL_S = 60.0
_IDLE_S = 1.5
_LOOK_EVERY_S = 1.0


class Lanes(Struct, frozen=True):
    """What all workers together have done for one API, and the guard that held."""

    granted: int
    missed: int
    round_trips: int
    guard_s: float


class Load(Struct, frozen=True):
    """Shares of one core, and the host's load average over a minute."""

    average: float
    workers: tuple[float, ...]
    servers: float
    limiter_redis: float

    def __str__(self) -> str:
        cores = f"CPU of a worker {max(self.workers):.0%} at most, servers {self.servers:.0%}"
        return f"{cores}, limiter's Redis {self.limiter_redis:.0%}; load {self.average:.1f}"


class Measured(Struct, frozen=True):
    """One run at the limit of one API.

    Attributes:
        calls: Every call of the run.
        used: Share of the limit that was used.
        missed: Share of it that was lost because a process was late though a call waited.
        trips: The limiter's exchanges with Redis per call.
        guard_s: The guard while it ran, on average.
        load: What the machine had to do.
    """

    calls: Calls
    used: float
    missed: float
    trips: float
    guard_s: float
    load: Load


class _Run:
    """One case while it runs."""

    def __init__(self, arena: Arena, case: Case, seconds: float) -> None:
        self.case = case
        self.seconds = seconds
        self._log = arena.servers[case.api].log
        self._offset = self._log.stat().st_size
        count = max(_FEWEST_JOBS, round(case.rate * (SETTLING_S + seconds + _SPARE_S)))
        self.batch: Batch = arena.client.submit(jobs(count, PATH, api=case.api), name=case.api)
        self.lanes: list[Lanes] = []
        self.began_s = 0.0

    def has_called(self) -> bool:
        return self._log.stat().st_size > self._offset

    def end(self) -> None:
        """End the batch.

        Raises:
            RuntimeError: Its work did not last.
        """
        progress = self.batch.progress()
        self.batch.cancel()
        if progress.total - progress.done < self.case.rate:
            raise RuntimeError(f"{self.case.name}: no work was left at the end of the run")

    def calls(self) -> Calls:
        return read_calls(self._log, self._offset)


def run_at_limit(arena: Arena, seconds_of: dict[Case, float]) -> dict[Case, Measured]:
    """Run batches side by side, each for its time, and return what was seen."""
    runs = [_Run(arena, case, seconds) for case, seconds in seconds_of.items()]
    for run in runs:
        _await_first_call(run)
    time.sleep(SETTLING_S)
    cpu, began_s, ending = _cpu(arena), time.monotonic(), sorted(runs, key=lambda run: run.seconds)
    while ending:
        statuses = arena.statuses()
        for run in ending:
            run.lanes.append(_lanes_of([lane for status in statuses for lane in status.lanes], run.case))
        while ending and time.monotonic() > began_s + ending[0].seconds:
            ending.pop(0).end()
        time.sleep(_LOOK_EVERY_S)
    load = _load(arena, cpu, time.monotonic() - began_s)
    for run in runs:
        arena.servers[run.case.api].await_idle(_IDLE_S)
    return {run.case: _measured(run, load) for run in runs}


def _await_first_call(run: _Run) -> None:
    deadline = time.monotonic() + _FIRST_CALL_S
    while not run.has_called():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{run.case.name}: no call within {_FIRST_CALL_S:g} s")
        time.sleep(0.05)


def _measured(run: _Run, load: Load) -> Measured:
    calls, first, last = run.calls(), run.lanes[0], run.lanes[-1]
    begin_s = calls.accepted_s[0] + SETTLING_S
    allowed = run.case.rate * run.seconds
    granted = max(1, last.granted - first.granted)
    return Measured(
        calls=calls,
        used=calls.between(begin_s, begin_s + run.seconds) / allowed,
        missed=(last.missed - first.missed) / allowed,
        trips=(last.round_trips - first.round_trips) / granted,
        guard_s=fmean(lanes.guard_s for lanes in run.lanes),
        load=load,
    )


def _lanes_of(lanes: Sequence[LaneStatus], case: Case) -> Lanes:
    ours = [lane for lane in lanes if lane.api == case.api]
    return Lanes(
        sum(lane.granted for lane in ours),
        sum(lane.slots_missed for lane in ours),
        sum(lane.round_trips for lane in ours),
        max((lane.guard_s for lane in ours), default=0.0),
    )


def _cpu(arena: Arena) -> dict[int, float]:
    pids = [process.pid for process in (arena.limiter_redis.child, *arena.workers)]
    return {pid: cpu_s(pid) for pid in (*pids, *(server.process.pid for server in arena.servers.values()))}


def _load(arena: Arena, before: Mapping[int, float], seconds: float) -> Load:
    shares = {pid: (used_s - before.get(pid, 0.0)) / seconds for pid, used_s in _cpu(arena).items()}
    return Load(
        os.getloadavg()[0],
        tuple(shares[worker.pid] for worker in arena.workers if worker.pid in shares),
        sum(shares[server.process.pid] for server in arena.servers.values()),
        shares[arena.limiter_redis.child.pid],
    )
