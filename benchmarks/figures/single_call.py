"""What Callmill adds to one call on an idle system: from ``client.call`` to its outcome, without the API's own time."""

from __future__ import annotations

import time
from statistics import quantiles

from figure import Figure
from scale import Scale
from stage import Stage
from workload import jobs

_WARM_UP = 10


def measure(scale: Scale) -> list[Figure]:
    """Make calls one after the other."""
    with Stage() as stage, stage.start_worker() as worker:
        stage.await_workers(worker)
        added_ms = []
        for job in jobs(_WARM_UP + scale.single_calls, "/ok"):
            began_s = time.perf_counter()
            outcome = stage.client.call(job)
            added_ms.append((time.perf_counter() - began_s - outcome.latency) * 1000)
    shares = quantiles(added_ms[_WARM_UP:], n=100, method="inclusive")
    note = f"{scale.single_calls} calls"
    return [
        Figure(name="one call, added time, p50", unit="ms", runs=(shares[49],), must=8, aim=5, note=note),
        Figure(name="one call, added time, p99", unit="ms", runs=(shares[98],), must=50, note=note),
    ]
