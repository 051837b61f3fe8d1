"""What a worker that has nothing to do holds and uses: after its start, and after a batch."""

from __future__ import annotations

import time

from child import Child
from figure import Figure
from msgspec import Struct
from proc import cpu_s, pss_mb, rss_mb
from scale import Scale
from stage import Program, Stage
from workload import jobs

_SETTLES_S = 5.0
_MOST_MB = 120
_MOST_CORE_PERCENT = 1
_BATCH_S = 300.0
_MORE_PROFILES = """\
[apis.paced]
base_url = "{url}"
allow_private_addresses = true
limits = ["100/second", "10 concurrent"]

[apis.metered]
base_url = "{url}"
allow_private_addresses = true
limits = ["500/minute", "200000 tokens/minute"]
"""
_SHOWN: dict[Program, str] = {"callmill": "callmill worker", "celery": "celery -A callmill.workers worker"}


class _Rest(Struct, frozen=True):
    """A worker at rest: its memory, and the part of a core that it used."""

    rss_mb: float
    pss_mb: float
    core_percent: float


def measure(scale: Scale) -> list[Figure]:
    """Watch both kinds of worker, which serve three APIs."""
    figures: list[Figure] = []
    for program, shown in _SHOWN.items():
        with Stage(more_profiles=_MORE_PROFILES) as stage, stage.start_worker(program) as worker:
            stage.await_workers(worker)
            figures += _figures(f"{shown}, idle", _rest(worker, scale.idle_s))
            stage.client.submit(jobs(scale.idle_calls, "/ok")).wait(_BATCH_S)
            figures += _figures(f"{shown}, idle after {scale.idle_calls:,} calls", _rest(worker, scale.idle_s))
    return figures


def _rest(worker: Child, watched_s: float) -> _Rest:
    time.sleep(_SETTLES_S)
    began_s, before_s = time.perf_counter(), cpu_s(worker.pid)
    time.sleep(watched_s)
    core_percent = (cpu_s(worker.pid) - before_s) / (time.perf_counter() - began_s) * 100
    return _Rest(rss_mb(worker.pid), pss_mb(worker.pid), core_percent)


def _figures(name: str, rest: _Rest) -> list[Figure]:
    note = f"{rest.pss_mb:.0f} MB where pages that processes share count in parts (PSS)"
    return [
        Figure(name=f"{name}: memory", unit="MB", runs=(rest.rss_mb,), must=_MOST_MB, note=note),
        Figure(name=f"{name}: of a core", unit="%", runs=(rest.core_percent,), must=_MOST_CORE_PERCENT),
    ]
