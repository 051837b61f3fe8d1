"""Workers as processes, strict APIs, a client and the command line: what tests of limits from end to end stand on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from click.testing import CliRunner
from local_nodes import LocalWorker, WorkerProcess, write_profiles

from callmill.cli.program import callmill
from callmill.config.celery import app
from callmill.producer import Batch, Client, Job, Outcome

WAIT_S = 30


@dataclass
class Site:
    """Workers, a client, and the command line."""

    client: Client
    redis: redis.Redis
    workers: list[LocalWorker]
    environment: dict[str, str]

    def submit(self, api: str, count: int, url: str = "/x", **fields: Any) -> Batch:
        """Submit equal jobs."""
        return self.client.submit([Job("POST", url, api=api, **fields) for _ in range(count)])

    def outcomes(self, batch: Batch) -> list[Outcome]:
        """Return a batch's outcomes when it is over."""
        batch.wait(WAIT_S)
        return list(batch.outcomes())

    def cli(self, *arguments: str) -> str:
        """Run a command to its end, which must be a good one, and return what it prints."""
        result = CliRunner().invoke(callmill, arguments, env=self.environment)
        assert result.exit_code == 0, result.output
        return result.stdout

    def limits(self, *arguments: str) -> Any:
        """Return the JSON that ``callmill limits`` prints."""
        return json.loads(self.cli("limits", *arguments, "--json"))

    def logs(self) -> str:
        """Return what all workers logged."""
        return "".join(worker.logs() for worker in self.workers)

    def assert_healthy(self) -> None:
        """Check that nothing in a worker died and no call met a bug."""
        log = self.logs()
        for words in ("Traceback", "a part of the worker died", "a runner died", "met a bug"):
            assert words not in log


@contextlib.contextmanager
def limits_site(
    folder: Path,
    redis_url: str,
    profiles: Mapping[str, Iterable[str]],
    *,
    workers: int = 1,
    settings: Mapping[str, object] | None = None,
) -> Iterator[Site]:
    """Run workers that serve these profiles until the block ends."""
    apis = write_profiles(folder / "apis.toml", profiles)
    nodes: list[LocalWorker] = []
    with redis.Redis.from_url(redis_url, decode_responses=True) as connection, Client(redis_url) as client:
        connection.flushall()
        try:
            processes = [WorkerProcess(folder, redis_url, apis, settings or {}).start() for _ in range(workers)]
            nodes += [LocalWorker(process, app) for process in processes]
            for node in nodes:
                node.ready()
            environment = {"CALLMILL_REDIS_URL": redis_url, "CALLMILL_APIS": str(apis), "COLUMNS": "200"}
            yield Site(client, connection, nodes, environment)
        finally:
            for node in nodes:
                node.teardown()


def key_pool(folder: Path, names: str, *limits: str) -> str:
    """Return the line of a profile with credentials of these names, each with limits of its own."""
    entries = []
    for name in names.split():
        (folder / f"secret-{name}").write_text(f"secret-{name}")
        own = f", limits = {json.dumps(limits)}" if limits else ""
        entries.append(f'{{ bearer = "file:{folder}/secret-{name}", name = "{name}"{own} }}')
    return f"auth = [{', '.join(entries)}]"
