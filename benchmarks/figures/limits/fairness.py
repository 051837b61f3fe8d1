"""One call a second and sixteen processes: does everybody get his turn?"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from child import HERE
from figure import Figure
from figures.limits.callers import Demand, Plan, run_callers
from figures.limits.scale import LimitScale
from redis_server import redis_server

from callmill.config.limit_spec import Enforcer

sys.path.append(str(HERE.parent / "tests"))
from limits_kit import Fleet, Worker, jain, rules

_PROCESSES = 16
_LIMIT = "1/second"


def measure(scale: LimitScale) -> Iterator[Figure]:
    """Ask the real script at simulated times for long, and real processes for a moment."""
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as url:
        yield _simulated(url, scale.fairness_s)
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as url:
        yield _real(url, scale.fairness_real_s)


def _simulated(url: str, seconds: float) -> Figure:
    fleet = Fleet(url, rules(_LIMIT))
    fleet.warm()
    workers = [Worker(f"worker-{number}") for number in range(_PROCESSES)]
    fleet.run(workers, seconds, calls=[1] * _PROCESSES)
    shares = [len(worker.starts_us) for worker in workers]
    seen = f"{seconds:g} s of simulated time: {min(shares)} to {max(shares)} calls each"
    trips = sum(worker.exchanges for worker in workers) / sum(shares)
    return Figure(
        name=f"Jain index, {_LIMIT}, {_PROCESSES} workers",
        unit="",
        runs=(jain(shares),),
        better="higher",
        must=0.99,
        aim=0.9999,
        note=f"{seen}, {trips:.2f} round trips a call",
    )


def _real(url: str, seconds: float) -> Figure:
    plan = Plan(
        redis_url=url,
        limit=_LIMIT,
        enforcer=Enforcer.UNKNOWN,
        burst=1,
        seconds=seconds,
        demands=[Demand(callers=2)],
    )
    shares = [len(calls) for process in run_callers([plan] * _PROCESSES) for calls in process]
    return Figure(
        name=f"Jain index, {_LIMIT}, {_PROCESSES} real processes",
        unit="",
        runs=(jain(shares),),
        better="higher",
        note=f"{seconds:g} s: {min(shares)} to {max(shares)} calls each; whole numbers leave it below 1",
    )
