"""Throughput of a healthy API while another API on the same worker is down, hangs, or is saturated, against alone."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from child import Child
from figure import Figure
from msgspec import Struct
from redis_server import flush
from scale import Scale
from stage import Stage
from workload import API, jobs

from callmill.producer import Batch

_BESIDE = ("down", "hanging", "saturated")
_RATE = 500
"""Calls a second of the healthy API: what a worker can do at any time, so that only the other API can take from it."""

_OTHER_JOBS = 20_000
_SETTLED_S = 4.0
"""By then the other API's breaker is open, its time-outs have come, or its limit is used up."""

_POLL_S = 0.05
_TIMEOUT_S = 300.0
_OTHERS = """
[apis.down]
base_url = "http://127.0.0.1:{refusing}"
allow_private_addresses = true

[apis.hanging]
base_url = "http://127.0.0.1:{silent}"
allow_private_addresses = true
timeout = 2

[apis.saturated]
base_url = "{url}"
allow_private_addresses = true
limits = ["10/second"]
"""


class _Ports(Struct, frozen=True):
    refusing: int
    silent: int


def measure(scale: Scale) -> list[Figure]:
    """Run the healthy API alone and beside each of the others, in turns."""
    alone: list[float] = []
    beside: dict[str, list[float]] = {other: [] for other in _BESIDE}
    with _bad_ports() as ports:
        others = _OTHERS.format(refusing=ports.refusing, silent=ports.silent, url="{url}")
        with Stage([f"{_RATE}/second"], burst=20, more_profiles=others) as stage:
            calls = _RATE * scale.limited_s
            for _ in range(scale.rounds):
                alone.append(_calls_per_s(stage, calls, None))
                for other, runs in beside.items():
                    runs.append(_calls_per_s(stage, calls, other))
    return [
        Figure(
            name=f"calls of one worker, another API {other}",
            unit="calls/s",
            runs=tuple(runs),
            baseline_name="alone",
            baseline_runs=tuple(alone),
            judged="ratio",
            better="higher",
            must=0.95,
        )
        for other, runs in beside.items()
    ]


def _calls_per_s(stage: Stage, calls: int, other: str | None) -> float:
    flush(stage.redis_url)
    with stage.start_worker() as worker:
        stage.await_workers(worker)
        if other is not None:
            stage.client.submit(jobs(_OTHER_JOBS, "/ok", api=other), name=other)
        time.sleep(_SETTLED_S)  # alone as well: a worker that has just started is slower
        return _rate(stage.client.submit(jobs(calls, "/ok", api=API), name="measured"), worker)


def _rate(batch: Batch, worker: Child) -> float:
    """Return the calls a second of a batch that no other call of its API disturbs, from its first outcomes on."""
    began_s, first = time.perf_counter(), 0
    while not (progress := batch.progress()).ended:
        if not first and progress.done:
            began_s, first = time.perf_counter(), progress.done
        if time.perf_counter() - began_s > _TIMEOUT_S:
            raise RuntimeError(f"{progress.done} of {progress.total} calls done in time:\n{worker.log_tail()}")
        time.sleep(_POLL_S)
    if progress.failed:
        raise RuntimeError(f"{progress.failed} calls failed:\n{worker.log_tail()}")
    return (progress.total - first) / (time.perf_counter() - began_s)


@contextmanager
def _bad_ports() -> Iterator[_Ports]:
    """Keep a port that refuses every connection, and one that takes them and never says a word."""
    with socket.socket() as refusing, socket.socket() as silent:
        refusing.bind(("127.0.0.1", 0))
        silent.bind(("127.0.0.1", 0))
        silent.listen(4096)
        yield _Ports(refusing.getsockname()[1], silent.getsockname()[1])
