"""Fixtures that several suites use: a real Redis server, ledger and client on it, and workers as processes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import redis
from bare_path import set_path_for
from container_nodes import ContainerProcess, RedisContainer, WorkerContainer, build_image, engine_or_skip
from hypothesis import HealthCheck, settings
from local_nodes import LocalBroker, LocalWorker, RedisProcess, WorkerProcess

from callmill.config.celery import app
from callmill.producer import Client

# How long an example takes says something of the machine, nothing of the code.
settings.register_profile("callmill", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("callmill")

# What belongs to whoever runs the tests: a Redis that we would empty, a proxy that misses our ports, a terminal's size.
_NOT_OURS = re.compile(
    r"CALLMILL_(?!REDIS_SERVER$|TEST_EXAMPLES$|FUZZ_S$)|CELERY_|FLOWER_|XDG_STATE_HOME$|COLUMNS$|LINES$|FORCE_COLOR$|NO_COLOR$"
    r"|(?i:(?:http|https|all|no)_proxy$)"
)
for name in filter(_NOT_OURS.match, list(os.environ)):
    del os.environ[name]

_IMAGE = "callmilltest"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Hide from each test, and from its fixtures, the programs that not every machine has."""
    set_path_for(item)


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


@pytest.fixture(scope="session")
def image() -> str:
    """Build the image of the checkout, once; its name. Skipped where there is no Docker engine."""
    ContainerProcess.engine = engine_or_skip()
    build_image(_IMAGE)
    return _IMAGE


@pytest.fixture(params=["processes", pytest.param("containers", marks=pytest.mark.docker)])
def image_or_none(request: pytest.FixtureRequest) -> str | None:
    """What nodes of this test are: processes of this machine, or, where an engine is, containers of our image."""
    return request.getfixturevalue("image") if request.param == "containers" else None


@pytest.fixture
def celery_broker(tmp_path: Path, image_or_none: str | None) -> Iterator[LocalBroker]:
    """Run a server of the test's own that survives a kill: it may be stopped and started again."""
    server = RedisContainer if image_or_none else RedisProcess
    node = LocalBroker(server(tmp_path, durable=True).start())
    node.ready()
    yield node
    node.teardown()


@pytest.fixture
def start_worker(tmp_path: Path, image_or_none: str | None) -> Iterator[StartWorker]:
    """Start workers that end with the test."""
    nodes = []

    def start(redis_url: str, apis: Path, settings: Mapping[str, object] | None = None) -> LocalWorker:
        if image_or_none:
            process: WorkerProcess = WorkerContainer(tmp_path, redis_url, apis, settings or {}, image=image_or_none)
        else:
            process = WorkerProcess(tmp_path, redis_url, apis, settings or {})
        node = LocalWorker(process.start(), app)
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
