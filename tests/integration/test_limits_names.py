"""Workers that start while the limiter's Redis is away: no API gets the limits of another one of its name."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest
import redis
from local_nodes import RedisProcess, WorkerProcess, until, write_profiles

from callmill.config.public_api import PublicApi
from callmill.ledger import keys
from callmill.limits.keys import OWNERS

FIRST, SECOND = (PublicApi(name="crm", base_url=f"http://127.0.0.1:{port}") for port in (1, 2))
WAITS = "no call starts until the limiter's Redis can be reached"


@pytest.fixture
def frozen(tmp_path) -> Iterator[RedisProcess]:
    """Run a Redis in which the first API owns the name, and that answers nobody."""
    server = RedisProcess(tmp_path, durable=True).start()
    try:
        server.ready()
        with redis.Redis.from_url(server.url) as connection:
            connection.hset(OWNERS, FIRST.name, FIRST.identity)
        server.send(signal.SIGSTOP)
        yield server
    finally:
        server.send(signal.SIGCONT)
        server.teardown()


@pytest.fixture
def worker(frozen, tmp_path) -> Iterator[WorkerProcess]:
    """Start a worker of the second API meanwhile."""
    apis = write_profiles(tmp_path / "apis.toml", {"crm": [f'base_url = "{SECOND.base_url}"']})
    process = WorkerProcess(tmp_path, frozen.url, apis, {}).start()
    try:
        yield process
    finally:
        process.teardown()


def test_a_worker_that_starts_while_redis_is_away_gets_its_own_limits(frozen, worker):
    """The second API of a name has its limits under its own name in every process, whenever that began."""
    until(lambda: WAITS in worker.logs() or "ready" in worker.logs(), 30, "word of the worker")
    frozen.send(signal.SIGCONT)
    worker.ready()
    with redis.Redis.from_url(frozen.url) as connection:
        known = until(lambda: connection.hget(keys.APIS_AT, f"crm@{SECOND.identity}"), 20, "its announcement")
    assert json.loads(known)["limited_as"] == f"crm@{SECOND.identity}"


def test_a_worker_that_waits_for_redis_can_be_stopped(worker):
    """It ends soon after it was asked to, and not only when Redis is back."""
    until(lambda: WAITS in worker.logs(), 30, "word of the worker")
    worker.send(signal.SIGTERM)
    assert worker.wait(15) == 0
