"""Fixtures that several suites use: a real Redis server, ledger and client on it, and workers as processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import redis
from hypothesis import HealthCheck, settings
from local_nodes import LocalBroker, LocalWorker, RedisProcess, WorkerProcess

from callmill.config.celery import app
from callmill.producer import Client

# How long an example takes says something of the machine, nothing of the code.
settings.register_profile("callmill", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("callmill")

StartWorker = Callable[..., LocalWorker]


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    """Run one Redis server for the whole session; nothing of it is on disk."""
    server = RedisProcess(tmp_path_factory.mktemp("redis")).start()
    server.ready()
    yield server
    server.teardown()


@pytest.fixture
def redis_url(redis_server: RedisProcess) -> str:
    """URL of the session's server, emptied for the test."""
    with redis.Redis.from_url(redis_server.url) as connection:
        connection.flushall()
    return redis_server.url


@pytest.fixture
def celery_broker(tmp_path: Path) -> Iterator[LocalBroker]:
    """Run a server of the test's own that survives a kill: it may be stopped and started again."""
    node = LocalBroker(RedisProcess(tmp_path, durable=True).start())
    node.ready()
    yield node
    node.teardown()


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[StartWorker]:
    """Start workers that end with the test."""
    nodes = []

    def start(redis_url: str, apis: Path, settings: Mapping[str, object] | None = None) -> LocalWorker:
        node = LocalWorker(WorkerProcess(tmp_path, redis_url, apis, settings or {}).start(), app)
        nodes.append(node)
        node.ready()
        return node

    yield start
    for node in nodes:
        node.teardown()


@pytest.fixture
def client(redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Client]:
    """Return a client of the session's server that knows no API profile."""
    monkeypatch.chdir(tmp_path)
    for name in ("CALLMILL_APIS", "CALLMILL_REDIS_URL", "CALLMILL_BROKER_URL", "CALLMILL_LIMITER_URL"):
        monkeypatch.delenv(name, raising=False)
    with Client(redis_url) as made:
        yield made
