"""Arena: simulated APIs, Redis, and a fleet of real worker processes that call them."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import msgspec
from child import Child
from msgspec import Struct
from redis_server import RedisServer

from callmill.config.redis_connections import connect
from callmill.ledger import LedgerSession
from callmill.ledger.fleet import Fleet, WorkerStatus
from callmill.producer import Client
from callmill.simulator import SimulatorOptions, SimulatorProcess

WORKERS = 8
_SECRET = "BENCHMARK_KEY"  # noqa: S105 - the name of a variable


class Api(Struct, frozen=True):
    """One API: the server behind it, and what its profile says of it."""

    server: SimulatorOptions
    profile: Mapping[str, Any]


class Server:
    """A simulator that writes a log, at a priority above its clients': a real one does not share their cores."""

    def __init__(self, options: SimulatorOptions, log: Path) -> None:
        self.log = log
        self.process = SimulatorProcess(msgspec.structs.replace(options, log=log))

    def __enter__(self) -> Self:
        self.process.start()
        with suppress(PermissionError):  # without the privilege it counts its own stalls as ours
            os.sched_setscheduler(self.process.pid, os.SCHED_FIFO, os.sched_param(1))
        return self

    def __exit__(self, *_exc: object) -> None:
        self.process.stop()

    def await_idle(self, seconds: float) -> None:
        """Wait until no call has come for a while; what came is in the log then."""
        arrivals = -1
        while True:
            stats = self.process.stats()
            if arrivals == (arrivals := stats["accepted"] + stats["rejected"]) and not stats["in_flight"]:
                return
            time.sleep(seconds)


class Arena:
    """APIs, Redis for the work and Redis for the limiter, and workers; gone with its context.

    Args:
        apis: By name.
        workers: Worker processes that run from the start.
    """

    def __init__(self, apis: Mapping[str, Api], *, workers: int = WORKERS) -> None:
        self._apis = apis
        self._count = workers
        self._numbers = itertools.count(1)
        self._open = ExitStack()
        self.workers: list[Child] = []

    def __enter__(self) -> Self:
        with ExitStack() as opening:
            self.directory = Path(opening.enter_context(tempfile.TemporaryDirectory(prefix="callmill-limits-")))
            self.redis = opening.enter_context(RedisServer(self.directory))
            self.limiter_redis = opening.enter_context(RedisServer(self.directory))
            self.servers = {
                name: opening.enter_context(Server(api.server, self.directory / f"{name}.log"))
                for name, api in self._apis.items()
            }
            profiles = self.directory / "apis.toml"
            profiles.write_text("".join(self._profile(name, api) for name, api in self._apis.items()))
            self._env = {
                "CALLMILL_REDIS_URL": self.redis.url,
                "CALLMILL_LIMITER_URL": self.limiter_redis.url,
                "CALLMILL_APIS": str(profiles),
                "CALLMILL_ALLOW_UNSAFE_REDIS": "1",
                _SECRET: "secret",
            }
            opening.callback(self._stop_workers)
            self.workers += [self.start_worker() for _ in range(self._count)]
            for worker in self.workers:
                self.await_worker(worker)
            self.client = opening.enter_context(Client(self.redis.url))
            self._open = opening.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._open.close()

    def start_worker(self) -> Child:
        """Start a worker process."""
        number = next(self._numbers)
        name = f"bench-{number}@%h"
        command = [sys.executable, "-m", "celery", "-A", "callmill.workers", "worker", "-n", name, "-l", "WARNING"]
        return Child(command, self.directory / f"worker-{number}.log", self._env)

    def await_worker(self, worker: Child) -> None:
        """Wait until a worker has told the fleet that it is there."""
        worker.await_ready(lambda: worker.pid in {status.pid for status in self.statuses()})

    def statuses(self) -> list[WorkerStatus]:
        """Return what the workers said of themselves within the last second or so."""
        return asyncio.run(_statuses(self.redis.url))

    def _stop_workers(self) -> None:
        for worker in self.workers:
            worker.kill()  # what they hold is of no interest any more

    def _profile(self, name: str, api: Api) -> str:
        told = {"base_url": self.servers[name].process.url, **api.profile}
        lines = [f"{key} = {json.dumps(value)}" for key, value in told.items()]
        lines += [f'auth = {{ bearer = "env:{_SECRET}" }}', "allow_private_addresses = true"]
        return f"[apis.{name}]\n" + "\n".join(lines) + "\n"


async def _statuses(redis_url: str) -> list[WorkerStatus]:
    redis = connect(redis_url)
    try:
        return await Fleet(LedgerSession(redis)).workers()
    finally:
        await redis.aclose()
