"""Stage: an API, a Redis and the profile that joins them, for one benchmark; gone with its context."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Literal, Self

from api_server import api_server
from child import Child
from redis_server import redis_server
from workload import API, jobs

from callmill.config.redis_connections import connect
from callmill.ledger import LedgerSession
from callmill.ledger.fleet import Fleet, WorkerStatus
from callmill.producer import Client

_SECRET = "BENCHMARK_KEY"  # noqa: S105 - the name of a variable
_PROFILE = """\
[apis.{name}]
base_url = "{url}"
auth = {{ bearer = "env:{secret}" }}
allow_private_addresses = true
limits = {limits}
{enforcer}
"""
_READY_S = 60.0

Program = Literal["celery", "callmill"]
_PROGRAMS: dict[Program, list[str]] = {
    "celery": ["celery", "-A", "callmill.workers", "worker", "-l", "WARNING", "-n"],
    "callmill": ["callmill.cli", "worker", "--name"],
}
"""How a worker is started: as Celery's users do, or as ours do. The last word takes its name."""


class Stage:
    """An API, a Redis, and the environment of processes that work with them.

    Args:
        limits: Limits of the API's profile; none when left out.
        burst: Calls that the server takes at once, as the profile says; None: nothing is said of how it counts.
        server_rate: Calls a second that the server itself lets pass on its limited path.
        more_profiles: TOML of further profiles; ``{url}`` in it is the API's.
    """

    def __init__(
        self, limits: Sequence[str] = (), *, burst: int | None = None, server_rate: int = 100, more_profiles: str = ""
    ) -> None:
        self._limits = list(limits)
        self._burst = burst
        self._server_rate = server_rate
        self._more_profiles = more_profiles
        self._numbers = itertools.count(1)
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opening:
            self.directory = Path(opening.enter_context(tempfile.TemporaryDirectory(prefix="callmill-bench-")))
            self.api = opening.enter_context(api_server(self.directory, self._server_rate))
            self.redis_url = opening.enter_context(redis_server(self.directory))
            profiles = self.directory / "apis.toml"
            profiles.write_text(self._profile())
            self.env = {
                "CALLMILL_REDIS_URL": self.redis_url,
                "CALLMILL_APIS": str(profiles),
                "CALLMILL_ALLOW_UNSAFE_REDIS": "1",
                _SECRET: "secret",
            }
            opening.enter_context(_environment(self.env))
            self.client = opening.enter_context(Client())
            self._open = opening.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._open.close()

    def _profile(self) -> str:
        enforcer = "" if self._burst is None else f'enforcer = "bucket"\nburst = {self._burst}'
        limits = json.dumps(self._limits)
        own = _PROFILE.format(name=API, url=self.api.url, secret=_SECRET, limits=limits, enforcer=enforcer)
        return own + self._more_profiles.replace("{url}", self.api.url)

    def start_worker(self, program: Program = "celery", **settings: object) -> Child:
        """Start a worker process, with settings of its own where given; use it as a context."""
        number = next(self._numbers)
        command = [sys.executable, "-m", *_PROGRAMS[program], f"bench-{number}"]
        own = {f"CALLMILL_{name.upper()}": str(value) for name, value in settings.items()}
        return Child(command, self.directory / f"worker-{number}.log", {**self.env, **own})

    def await_workers(self, *workers: Child) -> None:
        """Wait until every worker has reported, and one of them has made a call."""
        for worker in workers:
            worker.await_ready(partial(self.has_reported, worker))
        self.client.submit(jobs(1, "/ok"), name="warm-up").wait(_READY_S)

    def has_reported(self, worker: Child) -> bool:
        """Say whether a worker has told the fleet that it is there."""
        return worker.pid in {status.pid for status in self.workers()}

    def workers(self) -> list[WorkerStatus]:
        """Return what the workers have said of themselves."""
        return asyncio.run(_workers(self.redis_url))


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Make this process a client of the stage, which it is until the context ends."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


async def _workers(redis_url: str) -> list[WorkerStatus]:
    redis = connect(redis_url)
    try:
        return await Fleet(LedgerSession(redis)).workers()
    finally:
        await redis.aclose()
