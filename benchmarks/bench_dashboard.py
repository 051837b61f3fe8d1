"""Measure what the dashboard takes: the time of each JSON answer, and the memory of its process.

``python benchmarks/bench_dashboard.py``: 1 000 batches, one of them of 10 000 000 jobs, 10 APIs, 20 workers, as
``bench_overview.py`` makes them; and Celery's events of 1 000 000 jobs in chunks of 100, which Flower remembers.
Answers are read anew each time: those that serve several viewers at once cost less.
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles

from bench_overview import BATCHES, JOBS, fill
from child import Child
from figure import Figure
from proc import cpu_s, rss_mb
from redis_server import redis_server
from report import table

from callmill.config.celery import app
from callmill.config.redis_connections import connect

ROUNDS = 40
EVERY_S = 1.2
"""Longer than an answer is kept."""
TASKS, TASKS_AT_ONCE = 10_000, 500
"""Chunks of 1 000 000 jobs."""
MUST_MS, MUST_MB = 50, 150


def measure(directory: Path, redis_url: str) -> list[Figure]:
    """Fill a server, and look at it through a dashboard."""
    large = asyncio.run(_filled(redis_url))
    paths = {
        "batches, the first page": "batches",
        "batches, the last page": f"batches?offset={BATCHES - 25}",
        "batches by state and name": "batches?state=running&name=batch",
        f"a batch of {JOBS:,} jobs": f"batch/{large}",
        "10 APIs": "apis",
        "20 worker processes": "processes",
    }
    with _dashboard(directory, redis_url) as (child, url):
        _tell_of_tasks(redis_url, url)
        took_ms: dict[str, list[float]] = {name: [] for name in paths}
        for _ in range(ROUNDS):
            began_s = time.monotonic()
            for name, path in paths.items():
                took_ms[name].append(_asked_ms(f"{url}/callmill/data/{path}"))
            time.sleep(max(0.0, EVERY_S - (time.monotonic() - began_s)))
        used_s = cpu_s(child.pid)
        figures = [
            Figure(
                name=name, unit="ms", runs=tuple(runs), must=MUST_MS, note=f"p99 {quantiles(runs, n=100)[-1]:.0f} ms"
            )
            for name, runs in took_ms.items()
        ]
        figures.append(
            Figure(name="memory", unit="MB", runs=(rss_mb(child.pid),), must=MUST_MB, note=f"{TASKS:,} chunks")
        )
        asked = sum(map(len, took_ms.values()))
        return [
            *figures,
            Figure(name="CPU in all", unit="s", runs=(used_s,), note=f"start, {TASKS:,} chunks, {asked} answers"),
        ]


async def _filled(redis_url: str) -> str:
    redis = connect(redis_url)
    try:
        return await fill(redis)
    finally:
        await redis.aclose()


@contextmanager
def _dashboard(directory: Path, redis_url: str) -> Iterator[tuple[Child, str]]:
    log = directory / "dashboard.log"
    settings = {"CALLMILL_REDIS_URL": redis_url, "PYTHONUNBUFFERED": "1"}
    child = Child([sys.executable, "-m", "callmill.cli", "dashboard", "--port", "0"], log, settings)
    try:
        child.await_ready(lambda: "Dashboard on" in log.read_text())
        found = re.search(r"Dashboard on (\S+)", log.read_text())
        if found is None:
            raise RuntimeError("the dashboard does not say where it is")
        yield child, found[1]
    finally:
        child.stop()


def _tell_of_tasks(redis_url: str, url: str) -> None:
    """Send what a worker sends of each chunk, and wait until Flower has it: it misses what comes too fast."""
    with app.connection_for_write(redis_url) as connection:
        events = app.events.Dispatcher(connection, hostname="callmill@benchmark", buffer_while_offline=False)
        _until(lambda: events.send("worker-online", freq=2) or '"hostname"' in _asked(f"{url}/workers?json=1"))
        query = "draw=1&start=0&length=1&order[0][column]=0&order[0][dir]=asc&columns[0][data]=uuid"
        for first in range(0, TASKS, TASKS_AT_ONCE):
            for number in range(first, first + TASKS_AT_ONCE):
                task = {"uuid": f"5f23dd42ff8e:{number}"}
                label = f"translate-catalogue · api0 · jobs {number * 100}-{number * 100 + 99}"
                events.send("task-received", name="callmill.run_chunk", args=label, kwargs="", retries=0, **task)
                events.send("task-started", **task)
                events.send("task-succeeded", result="'98 ok, 2 failed, p50 120 ms'", runtime=1.5, **task)
            known = f'"recordsTotal": {first + TASKS_AT_ONCE}'
            _until(lambda known=known: known in _asked(f"{url}/tasks/datatable?{query}"))


def _until(happened: Callable[[], bool]) -> None:
    for _ in range(300):
        if happened():
            return
        time.sleep(0.1)
    raise RuntimeError("the dashboard has not heard of the tasks within 30 s")


def _asked(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - http
        text: str = answer.read().decode()
        return text


def _asked_ms(url: str) -> float:
    began_s = time.perf_counter()
    _asked(url)
    return (time.perf_counter() - began_s) * 1000


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as server_url:
        print(table(measure(Path(folder), server_url)))
