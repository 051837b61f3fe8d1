"""Two tenants of equal weight, one with sixteen times the other's demand: does each get half?"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from figure import Figure
from figures.limits.arena import WORKERS
from figures.limits.callers import Call, Demand, Plan, run_callers
from figures.limits.cases import BURST
from figures.limits.scale import LimitScale
from redis_server import redis_server

from callmill.config.limit_spec import Enforcer

_RATE = 100
_SMALL, _LARGE = "small", "large"
_JOB = 8
"""Callers of one job's demand."""

_TIMES = 16
_WARM_S = 2.0


def measure(scale: LimitScale) -> Iterator[Figure]:
    """Let both call as fast as they may: the small one from one process, and from all."""
    one = [[Demand(callers=_JOB, tenant=_SMALL)]] + [[_large(WORKERS - 1)]] * (WORKERS - 1)
    everywhere = [[Demand(callers=_JOB // WORKERS, tenant=_SMALL), _large(WORKERS)]] * WORKERS
    for where, demands in {"of one process": one, "of all processes": everywhere}.items():
        counts = [_counts(demands, scale.short_s) for _ in range(scale.runs)]
        yield Figure(
            name=f"off its half, small tenant {where}",
            unit="%",
            runs=tuple(abs(2 * small / (small + large) - 1) * 100 for small, large in counts),
            must=2,
            note=f"demand 1 : {_TIMES} at {_RATE}/s; {counts[-1][0]} and {counts[-1][1]} calls",
        )


def _large(processes: int) -> Demand:
    return Demand(callers=_JOB * _TIMES // processes, tenant=_LARGE)


def _counts(demands: Sequence[list[Demand]], seconds: float) -> tuple[int, int]:
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as url:
        plans = [
            Plan(
                redis_url=url,
                limit=f"{_RATE}/second",
                enforcer=Enforcer.BUCKET,
                burst=BURST,
                seconds=_WARM_S + seconds,
                demands=ours,
            )
            for ours in demands
        ]
        told = run_callers(plans)
    of: dict[str, list[Call]] = {_SMALL: [], _LARGE: []}
    for plan, process in zip(plans, told, strict=True):
        for demand, calls in zip(plan.demands, process, strict=True):
            of[demand.tenant] += calls
    from_s = min(call.started_s for calls in of.values() for call in calls) + _WARM_S
    small, large = (sum(call.started_s >= from_s for call in of[tenant]) for tenant in (_SMALL, _LARGE))
    return small, large
