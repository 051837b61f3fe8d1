"""Measure how files end if some of their jobs always fail, and what an outage does to jobs.

``python benchmarks/bench_failing_jobs.py [--only files]... [--down-s 120]``; half an hour with everything. A file may
take at most twice the time of its attempts at the pace of its limit, or of the longest waits of one job, whichever is
more. Prints a table as it goes; exit code 1: a target is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from child import Child
from failing_api import FailingApi, failing_api
from redis_server import flush, redis_server

from callmill.config.redis_connections import connect
from callmill.ledger import LedgerSession
from callmill.ledger.fleet import Fleet
from callmill.producer import Batch, Client, Job

_LIMITS = {"10/second": '["10/second"]', "no limits": "[]"}
_PROFILE = """\
[apis.{name}]
base_url = "{url}"
allow_private_addresses = true
limits = {limits}
{more}
"""
_RATE = 10
_ATTEMPTS, _WAITS_S = 5, 0.5 + 1 + 2 + 4
"""Defaults of a profile: attempts, and the longest waits between them."""

_TWICE = 2.0
_PATIENCE_S = 600.0
_POLL_S = 0.05
_API = {"10/second": "paced", "no limits": "free"}


class Bench:
    """An API, a Redis, workers and the table."""

    def __init__(self, directory: Path, redis_url: str, api: FailingApi) -> None:
        self.api = api
        self.missed = 0
        self._redis_url = redis_url
        self._directory = directory
        self._started = 0
        profiles = directory / "apis.toml"
        texts = [
            _PROFILE.format(name=name, url=api.url, limits=_LIMITS[limits], more="") for limits, name in _API.items()
        ]
        texts.append(_PROFILE.format(name="hanging", url=api.url, limits="[]", more="timeout = 0.5"))
        profiles.write_text("\n".join(texts))
        self.env = {
            "CALLMILL_REDIS_URL": redis_url,
            "CALLMILL_APIS": str(profiles),
            "CALLMILL_ALLOW_UNSAFE_REDIS": "1",
        }

    @contextmanager
    def workers(self, number: int) -> Iterator[None]:
        """Run workers until the context ends."""
        with ExitStack() as running:
            for _ in range(number):
                self._started += 1
                name = f"bench-{self._started}"
                command = [
                    sys.executable,
                    "-m",
                    "celery",
                    "-A",
                    "callmill.workers",
                    "worker",
                    "-l",
                    "WARNING",
                    "-n",
                    name,
                ]
                worker = running.enter_context(Child(command, self._directory / f"{name}.log", self.env))
                worker.await_ready(partial(_has_reported, self._redis_url, worker))
            yield

    def flush(self) -> None:
        """Empty the Redis; only while no worker runs."""
        flush(self._redis_url)

    def run(self, jobs: Sequence[Job], *, ok: int, failed: int) -> float:
        """Run a file to its end, and return the seconds that it took.

        Raises:
            RuntimeError: It does not end as it should.
        """
        began_s = time.monotonic()
        with Client(self._redis_url) as client:
            batch = client.submit(jobs)
            try:
                batch.wait(_PATIENCE_S)
            except TimeoutError:
                progress = batch.progress()
                batch.cancel()
                raise RuntimeError(f"{progress.done} of {progress.total} after {_PATIENCE_S:g} s") from None
            took_s = time.monotonic() - began_s
            check(batch, ok=ok, failed=failed)
        return took_s

    def row(self, name: str, figure: str, *, good: bool) -> None:
        """Print a line of the table."""
        self.missed += not good
        print(f"| {name} | {figure} | {'ok' if good else 'MISSED'} |", flush=True)

    def measured(self, name: str, measure: Callable[[], str]) -> None:
        """Print the result of a measurement; one that raises counts as missed."""
        try:
            self.row(name, measure(), good=True)
        except RuntimeError as error:
            self.row(name, str(error), good=False)


def check(batch: Batch, *, ok: int, failed: int) -> None:
    """Check that this many jobs are ok, and that all others failed with a 500 or a timeout.

    Raises:
        RuntimeError: They did not.
    """
    seen = Counter(
        "ok" if outcome.ok else outcome.error.code for outcome in batch.outcomes() if outcome.ok or outcome.error
    )
    wrong = {code: jobs for code, jobs in seen.items() if code not in {"ok", "http_500", "timeout"}}
    if wrong or seen["ok"] != ok or seen.total() - seen["ok"] != failed:
        raise RuntimeError(f"{dict(seen)} instead of {ok} ok, {failed} failed")


def file(api: str, bad: int, good: int, *, kind: str = "bad") -> list[Job]:
    """Return the jobs of a file: the bad ones spread evenly among the good, beginning with a bad one."""
    total = bad + good
    at = {round(n * total / bad) for n in range(bad)} if bad else set()
    return [Job("POST", f"/{kind if n in at else 'good'}/{n}", api=api, json={"n": n}) for n in range(total)]


FILES = {"12 of 12": (12, 0), "50 of 50": (50, 0), "6 among 500": (6, 494), "1 before 20": (1, 20)}


def files(bench: Bench) -> None:
    """Run each file under each limit, with one worker and with three."""
    for workers in (1, 3):
        for limits in _LIMITS:
            for name, (bad, good) in FILES.items():
                bench.flush()
                with bench.workers(workers):
                    bench.measured(f"{name}, {limits}, workers: {workers}", partial(_file, bench, limits, bad, good))


def _file(bench: Bench, limits: str, bad: int, good: int) -> str:
    took_s = bench.run(file(_API[limits], bad, good), ok=good, failed=bad)
    paced_s = (bad * _ATTEMPTS + good) / _RATE if limits != "no limits" else 0.0
    alone_s = max(paced_s, _WAITS_S)
    figure = f"{took_s:.1f} s; attempts or waits alone {alone_s:.1f} s"
    if took_s > _TWICE * alone_s:
        raise RuntimeError(figure)
    return figure


def sequences(bench: Bench) -> None:
    """Run files one after the other on one Redis, with workers kept or restarted; and files that hang."""
    for anew in (False, True):
        for limits in _LIMITS:
            bench.flush()
            name = f"{limits}, workers {'started anew' if anew else 'kept'}"
            with bench.workers(2):
                bench.measured(f"12 of 12, {name}", partial(_file, bench, limits, 12, 0))
                if not anew:
                    bench.measured(f"then 1 before 20, {name}", partial(_file, bench, limits, 1, 20))
                    bench.run(file(_API[limits], 0, 200), ok=200, failed=0)
                    bench.measured(f"50 of 50 after a healthy file, {name}", partial(_file, bench, limits, 50, 0))
                    bench.measured(f"and again 50 of 50, {name}", partial(_file, bench, limits, 50, 0))
            if anew:
                with bench.workers(2):
                    bench.measured(f"then 1 before 20, {name}", partial(_file, bench, limits, 1, 20))
    with bench.workers(1):
        for bad, good in ((12, 0), (50, 0), (20, 180)):
            name = f"{bad} of {bad + good} hang, time-out 0.5 s"
            bench.measured(name, partial(_hanging, bench, bad, good))


def _hanging(bench: Bench, bad: int, good: int) -> str:
    took_s = bench.run(file("hanging", bad, good, kind="hang"), ok=good, failed=bad)
    alone_s = _WAITS_S + _ATTEMPTS * 0.5
    figure = f"{took_s:.1f} s; attempts and waits alone {alone_s:.1f} s"
    if took_s > _TWICE * alone_s:
        raise RuntimeError(figure)
    return figure


def outages(bench: Bench, down_s: float) -> None:
    """Take the API down for a while, in each way, and count the jobs that fail."""
    for how in ("refused", "503", "502", "500"):
        for limits in _LIMITS:
            bench.flush()
            with bench.workers(2):
                bench.measured(
                    f"down for {down_s:g} s ({how}), 500 jobs, {limits}", partial(_outage, bench, limits, how, down_s)
                )


def _outage(bench: Bench, limits: str, how: str, down_s: float) -> str:
    api = _API[limits]
    with Client(os.environ["CALLMILL_REDIS_URL"]) as client:
        if how == "refused":
            bench.run(file(api, 0, 20), ok=20, failed=0)  # it was up before
            bench.api.vanish()
        else:
            bench.api.status = int(how)
        before = bench.api.calls.total()
        batch = client.submit(file(api, 0, 500))
        time.sleep(down_s)
        calls = bench.api.calls.total() - before
        bench.api.status = None
        if how == "refused":
            bench.api.appear()
        began_s = time.monotonic()
        batch.wait(_PATIENCE_S)
        progress, attempts = batch.progress(), Counter(outcome.attempts for outcome in batch.outcomes())
    after_s, spent = time.monotonic() - began_s, dict(attempts)
    figure = f"{progress.failed} failed, {calls} calls meanwhile, over {after_s:.0f} s after it, attempts {spent}"
    if progress.failed:
        raise RuntimeError(figure)
    return figure


def plain(bench: Bench) -> None:
    """Send one plain task to a URL that is always answered 500."""
    bench.flush()
    with bench.workers(1):
        bench.measured("one callmill.call to a URL that always answers 500", partial(_plain, bench))


def _plain(bench: Bench) -> str:
    from callmill.config.celery import CALLS_QUEUE, app  # noqa: PLC0415 - it reads the environment that was made for it

    began_s = time.monotonic()
    task = app.send_task("callmill.call", [{"method": "GET", "url": "/bad/0", "api": "free"}], queue=CALLS_QUEUE)
    while not task.ready():
        if time.monotonic() - began_s > _PATIENCE_S:
            raise RuntimeError(f"{task.state} after {_PATIENCE_S:g} s")
        time.sleep(_POLL_S)
    return f"{task.state} after {time.monotonic() - began_s:.0f} s, {bench.api.calls['/bad/0']} calls: {task.result}"


def _has_reported(redis_url: str, worker: Child) -> bool:
    return worker.pid in asyncio.run(_worker_pids(redis_url))


async def _worker_pids(redis_url: str) -> set[int]:
    redis = connect(redis_url)
    try:
        return {worker.pid for worker in await Fleet(LedgerSession(redis)).workers()}
    finally:
        await redis.aclose()


def main() -> int:
    """Measure what was asked for; return the exit code."""
    parser = argparse.ArgumentParser(description="Measure how files end if some of their jobs always fail.")
    parser.add_argument("--only", action="append", choices=["files", "sequences", "outages", "plain"])
    parser.add_argument("--down-s", type=float, default=120, help="seconds of each outage")
    options = parser.parse_args()
    wanted = options.only or ["files", "sequences", "outages", "plain"]
    with tempfile.TemporaryDirectory(prefix="callmill-bench-") as folder, failing_api() as api:
        directory = Path(folder)
        with redis_server(directory) as redis_url:
            bench = Bench(directory, redis_url, api)
            os.environ.update(bench.env)
            print("| what | figure | |\n|---|---|---|", flush=True)
            for part in wanted:
                if part == "outages":
                    outages(bench, options.down_s)
                else:
                    {"files": files, "sequences": sequences, "plain": plain}[part](bench)
    return int(bench.missed > 0)


if __name__ == "__main__":
    sys.exit(main())
