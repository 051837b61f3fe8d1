"""A Redis that would lose jobs: workers refuse it, and say what to do; doctor sees what can be seen."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
import redis
from click.testing import CliRunner
from local_nodes import free_port, write_profiles

from callmill.cli.program import callmill
from callmill.config.celery import app
from callmill.config.redis_connections import connect, connect_blocking
from callmill.config.redis_safety import Level, ServerFacts, durability, refuse_unsafe
from callmill.config.settings import load_settings
from callmill.errors import ConfigurationError
from callmill.ledger import LedgerSession
from callmill.ledger.memory import MemoryGauge
from callmill.workers.redis_watch import RedisWatch
from callmill.workers.rhythm import Rhythm
from callmill.workers.startup import prepare
from callmill.workers.worker_options import WorkerOptions

WAIT_S = 10


@pytest.fixture
def environment(redis_url, tmp_path, monkeypatch) -> None:
    """Point everything at the suite's server, which is in memory only."""
    apis = write_profiles(tmp_path / "apis.toml", {"api": ['base_url = "http://127.0.0.1:1"']})
    monkeypatch.setenv("CALLMILL_REDIS_URL", redis_url)
    monkeypatch.setenv("CALLMILL_APIS", str(apis))
    for name in ("ALLOW_UNSAFE_REDIS", "BROKER_URL", "LIMITER_URL"):
        monkeypatch.delenv(f"CALLMILL_{name}", raising=False)


@pytest.fixture
def restricted(redis_url) -> Iterator[str]:
    """URL of the suite's server for a user that may neither CONFIG nor, where the test says so, INFO."""
    with redis.Redis.from_url(redis_url) as connection:
        connection.execute_command("ACL", "SETUSER", "tenant", "on", ">pw", "~*", "&*", "+@all", "-config")
        yield redis_url.replace("redis://", "redis://tenant:pw@")
        connection.execute_command("ACL", "DELUSER", "tenant")


@pytest.mark.usefixtures("environment")
def test_worker_does_not_start_on_a_redis_that_loses_jobs():
    """``callmill worker`` ends with 2 and the remedy, and so does Celery's own worker command."""
    done = CliRunner().invoke(callmill, ["worker"])
    assert done.exit_code == 2
    assert "a restart loses everything; set appendonly yes" in done.stderr
    assert "CALLMILL_ALLOW_UNSAFE_REDIS=1" in done.stderr
    with pytest.raises(SystemExit, match="CALLMILL_ALLOW_UNSAFE_REDIS=1"):
        prepare(conf=app.conf)


def test_embedded_kind_of_server_is_safe(celery_broker):
    """A server with an append-only file that evicts nothing is taken without a word."""
    refuse_unsafe(celery_broker.url, allow_unsafe=False)
    with connect_blocking(celery_broker.url) as client:
        assert [finding.level for finding in durability(ServerFacts.read(client))] == [Level.OK] * 2


def test_server_that_is_away_refuses_nobody():
    """A Redis that cannot be reached now keeps no worker from starting: it waits, as it would later."""
    refuse_unsafe(f"redis://127.0.0.1:{free_port()}", allow_unsafe=False)


def test_forbidden_config_is_told_and_the_rest_is_checked(restricted, redis_url):
    """Without CONFIG, INFO decides: eviction and persistence are refused all the same; without INFO, nobody is."""
    with connect_blocking(restricted) as client, redis.Redis.from_url(redis_url) as owner:
        assert ServerFacts.read(client).config is None
        with pytest.raises(ConfigurationError, match="appendonly yes"):
            refuse_unsafe(restricted, allow_unsafe=False)
        owner.execute_command("ACL", "SETUSER", "tenant", "-info")
        refuse_unsafe(restricted, allow_unsafe=False)


@pytest.mark.usefixtures("environment")
def test_doctor_tells_what_would_be_refused(redis_url):
    """``callmill doctor`` fails for what a worker would refuse, and looks at memory, latency and clock."""
    with redis.Redis.from_url(redis_url) as connection:
        connection.config_set("maxmemory", "512mb")
        connection.config_set("maxmemory-policy", "allkeys-lru")
        try:
            done = CliRunner().invoke(callmill, ["doctor", "--json"])
        finally:
            connection.config_set("maxmemory-policy", "noeviction")
            connection.config_set("maxmemory", 0)
    levels = {finding["check"]: finding["level"] for finding in json.loads(done.stdout)}
    assert done.exit_code == 1
    assert {check: levels[check] for check in ("redis", "persistence", "eviction", "memory")} == {
        "redis": "ok",
        "persistence": "fail",
        "eviction": "fail",
        "memory": "ok",
    }
    assert {"latency", "clock"} <= levels.keys()


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("allowed", [False, True])
def test_server_that_takes_over_is_examined_too(redis_url, monkeypatch, allowed):
    """A worker holds, with the reason, on a server that loses jobs and that it meets after its start."""
    monkeypatch.setenv("CALLMILL_ALLOW_UNSAFE_REDIS", str(allowed))
    reasons: list[str] = []

    async def scenario() -> None:
        connection = connect(redis_url)
        heard = asyncio.Event()

        def hold(reason: str) -> None:
            reasons.append(reason)
            heard.set()

        session, options = LedgerSession(connection), WorkerOptions.of(load_settings())
        gauge, rhythm = MemoryGauge(session, options.memory_watermark), Rhythm(lambda: False)
        watch = asyncio.create_task(RedisWatch(session, options, hold, gauge=gauge, rhythm=rhythm).run())
        await asyncio.wait_for(heard.wait(), WAIT_S)
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        await connection.aclose()

    asyncio.run(scenario())
    assert ("would lose jobs" in reasons[0]) == (not allowed)
