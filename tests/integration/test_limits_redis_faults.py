"""Several processes over one limit while their Redis dies, forgets, stalls, or is replaced."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import pytest
import redis
from limits_callers import FULL, LIMIT, calling
from local_nodes import RedisProcess, until
from tcp_forwarder import Forwarder

pytestmark = pytest.mark.chaos


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[RedisProcess]:
    """A server of the test's own."""
    server = RedisProcess(folder).start()
    try:
        server.ready()
        with redis.Redis.from_url(server.url) as connection:
            if options:
                connection.execute_command(*options)
        yield server
    finally:
        server.teardown()


def test_a_redis_restarted_empty_is_no_burst(tmp_path):
    """Killed and restarted without its data, Redis is back at the full rate within 2 s, and no second held too much."""
    with serving(tmp_path) as server, calling(server.url, tmp_path) as callers:
        server.kill()
        server.start().ready()
        back = monotonic()
        callers.run_until(back + 3.1)
        verdict = callers.end()
    assert verdict.worst() <= LIMIT
    assert verdict.granted(back + 2, back + 3) >= FULL


@pytest.mark.parametrize("command", ["FLUSHALL", "SCRIPT FLUSH"])
def test_what_redis_forgets_is_no_burst(redis_url, tmp_path, command):
    """After the state or the scripts are gone, no second holds more than the limit, and the rate is soon back."""
    with calling(redis_url, tmp_path) as callers, redis.Redis.from_url(redis_url) as connection:
        connection.execute_command(*command.split())
        gone = monotonic()
        callers.run_until(gone + 2.1)
        verdict = callers.end()
    assert verdict.worst() <= LIMIT
    assert verdict.granted(gone + 1, gone + 2) >= FULL


def test_a_failover_that_lost_writes_is_no_burst(tmp_path):
    """A replica that missed the last 0.2 s takes over: no second holds more than the limit, the rate is soon back."""
    with (
        serving(tmp_path, "CONFIG", "SET", "repl-diskless-sync-delay", "0") as master,
        Forwarder(master.port) as link,
        serving(tmp_path, "REPLICAOF", "127.0.0.1", str(link.port)) as replica,
        Forwarder(master.port) as address,
        redis.Redis.from_url(replica.url) as connection,
    ):
        until(lambda: connection.info("replication")["master_link_status"] == "up")
        with calling(address.url, tmp_path) as callers:
            link.silence()
            callers.more(LIMIT // 5)
            connection.execute_command("REPLICAOF", "NO", "ONE")
            address.lead_to(replica.port)
            moved = monotonic()
            callers.run_until(moved + 3.1)
            verdict = callers.end()
    assert verdict.worst() <= LIMIT
    assert verdict.granted(moved + 2, moved + 3) >= FULL


def test_a_redis_that_stalls_for_a_second_delays_and_breaks_nothing(tmp_path):
    """While Redis stands still only held slots are fired; when it goes on, so do the calls, and none was too many."""
    with serving(tmp_path) as server, calling(server.url, tmp_path) as callers:
        server.send(signal.SIGSTOP)
        stopped = monotonic()
        callers.run_until(stopped + 1)
        server.send(signal.SIGCONT)
        callers.run_until(stopped + 3.1)
        verdict = callers.end()
    assert verdict.worst() <= LIMIT
    assert verdict.within(stopped + 0.6, stopped + 1) == 0
    assert verdict.granted(stopped + 2, stopped + 3) >= FULL


def test_processes_with_different_ideas_of_a_limit_keep_the_one_told_last(redis_url, tmp_path):
    """A process that starts with a lower limit binds those that run: from then on all of them keep it together."""
    high, low = tmp_path / "high", tmp_path / "low"
    high.mkdir()
    low.mkdir()
    with (
        calling(redis_url, high, count=2) as running,
        calling(redis_url, low, count=1, limits=["60/second"]) as late,
    ):
        told = time.monotonic()
        running.run_until(told + 2)
        verdicts = running.end(), late.end()
    starts = sorted(at for verdict in verdicts for at in verdict.starts)
    assert all(verdict.within(told, told + 2) for verdict in verdicts)
    assert max(sum(at <= other < at + 1 for other in starts) for at in starts if told <= at) <= 60
