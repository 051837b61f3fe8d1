"""Runs plain Celery on a benchmark's stage, with the same calls and the same measurements as Callmill gets."""

from __future__ import annotations

import sys
import time
from contextlib import closing

from child import Child, run_script
from msgspec import Struct
from proc import cpu_s
from redis_server import flush, used_memory
from stage import Stage

from callmill.config.redis_connections import connect_blocking

_POLL_S = 0.05
_TIMEOUT_S = 300.0


class CeleryEnqueue(Struct, frozen=True):
    """What sending the tasks took, and the bytes of Redis that a waiting task has."""

    jobs_per_s: float
    cpu_us: float
    bytes_per_job: float


class PlainCelery:
    """Plain Celery on the Redis and the API of a stage; what is in that Redis is lost."""

    def __init__(self, stage: Stage) -> None:
        server = stage.redis_url.rpartition("/")[0]
        self._stage = stage
        self._results_url = f"{server}/1"
        self._env = {
            "PLAIN_BROKER_URL": stage.redis_url,
            "PLAIN_RESULTS_URL": self._results_url,
            "PLAIN_API_URL": f"{stage.api.url}/ok",
        }

    def enqueue(self, calls: int) -> CeleryEnqueue:
        """Send the tasks from a process of its own."""
        flush(self._stage.redis_url)
        empty = used_memory(self._stage.redis_url)
        sent = run_script("baselines.plain_celery", calls, env=self._env)
        queued_bytes = used_memory(self._stage.redis_url) - empty
        return CeleryEnqueue(sent["jobs_per_s"], sent["cpu_us"], queued_bytes / calls)

    def run_worker(self, calls: int) -> tuple[float, float]:
        """Send the tasks, let a worker with two processes make the calls; return its CPU per call and calls per second.

        CPU counts from the first results to the last, in all processes of the worker.
        """
        self.enqueue(calls)
        command = [sys.executable, "-m", "celery", "-A", "baselines.plain_celery", "worker"]
        options = ["-P", "prefork", "-c", "2", "-l", "ERROR"]
        with Child([*command, *options], self._stage.directory / "plain-celery.log", self._env) as worker:
            worker.await_ready(lambda: self._results() > 0)
            first, began_s, before_s = self._results(), time.perf_counter(), cpu_s(worker.pid)
            while (done := self._results()) < calls:
                if time.perf_counter() - began_s > _TIMEOUT_S:
                    raise RuntimeError(f"plain Celery: {done} of {calls} calls done in time:\n{worker.log_tail()}")
                time.sleep(_POLL_S)
            made, wall_s, used_s = done - first, time.perf_counter() - began_s, cpu_s(worker.pid) - before_s
        return used_s / made * 1e6, made / wall_s

    def _results(self) -> int:
        with closing(connect_blocking(self._results_url)) as client:
            return int(client.dbsize())
