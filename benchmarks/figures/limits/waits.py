"""How long a call waits beyond the ideal: one queue for all processes, without a way to anybody."""

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

_RATES = (100, 1000)
_LOAD = 0.9
_WARM_S = 5.0
_BOUNDS_MS = {0.5: 5, 0.99: 25}


def measure(scale: LimitScale) -> Iterator[Figure]:
    """Let calls arrive at random at 90 % of a limit."""
    for rate in _RATES:
        runs = [_beyond_ideal_ms(rate, scale) for _ in range(scale.runs)]
        for share, bound_ms in _BOUNDS_MS.items():
            yield Figure(
                name=f"wait beyond the ideal start, {rate:,}/s, p{share * 100:g}",
                unit="ms",
                runs=tuple(run[int(share * (len(run) - 1))] for run in runs),
                must=bound_ms,
                note=f"{WORKERS} processes, load {_LOAD:.0%}, {len(runs[0]):,} calls"
                if share == min(_BOUNDS_MS)
                else "",
            )


def _beyond_ideal_ms(rate: int, scale: LimitScale) -> list[float]:
    demand = Demand(per_s=_LOAD * rate / WORKERS)
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as url:
        plan = Plan(
            redis_url=url,
            limit=f"{rate}/second",
            enforcer=Enforcer.BUCKET,
            burst=BURST,
            seconds=_WARM_S + scale.short_s,
            demands=[demand],
        )
        told = run_callers([plan] * WORKERS)
    calls = sorted((call for process in told for demands in process for call in demands), key=lambda call: call.asked_s)
    return _late_ms(calls, 1 / rate)


def _late_ms(calls: Sequence[Call], gap_s: float) -> list[float]:
    """Return by how many ms each call started later than it could have, in order."""
    late_ms, ideal_s = [], 0.0
    measured_from_s = calls[0].asked_s + _WARM_S
    for call in calls:
        ideal_s = max(call.asked_s, ideal_s + gap_s)
        if call.asked_s >= measured_from_s:
            late_ms.append((call.started_s - ideal_s) * 1000)
    return sorted(late_ms)
