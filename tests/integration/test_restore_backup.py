"""A ledger restored from a backup goes back in time, and still gives every job one outcome within the limits."""

from __future__ import annotations

import shutil
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from faulty_server import Exchange, faulty_server
from local_nodes import RedisProcess, WorkerProcess, until, write_profiles

from callmill.ledger.keys import BatchKeys
from callmill.producer import Client, Job

JOBS, LIMIT_PER_S = 300, 100
AT_BACKUP, AT_LOSS = 60, 160
BUSY_MACHINE = 1.25
"""What a second may hold more, because calls arrive later than they start."""


def back_up(connection: redis.Redis, data: Path, to: Path) -> None:
    """Copy the append-only file of a running server, as docs/operate/backup.md says."""
    connection.config_set("auto-aof-rewrite-percentage", 0)
    until(lambda: not connection.info("persistence")["aof_rewrite_in_progress"])
    shutil.copytree(data / "appendonlydir", to)
    connection.config_set("auto-aof-rewrite-percentage", 100)


def restore(server: RedisProcess, backup: Path) -> None:
    """Put the copy in place of what a stopped server has, and start it."""
    shutil.rmtree(server.folder / "appendonlydir")
    shutil.copytree(backup, server.folder / "appendonlydir")
    server.start().ready()


@contextmanager
def worker_on(server: RedisProcess, folder: Path, api_url: str) -> Iterator[None]:
    """Run a worker until the block ends, or ends before with SIGTERM."""
    limits = [f'base_url = "{api_url}"', f'limits = ["{LIMIT_PER_S}/second"]', 'enforcer = "bucket"']
    apis = write_profiles(folder / "apis.toml", {"near": limits})
    worker = WorkerProcess(folder, server.url, apis, {"lease_s": 2}).start()
    try:
        worker.ready()
        yield
        worker.kill(signal.SIGTERM)
    finally:
        worker.teardown()


@pytest.mark.chaos
def test_a_restored_ledger_goes_on_from_the_backup(monkeypatch, tmp_path):
    """Jobs done since the backup run again, with the same idempotency key; each has one outcome; the limit holds."""
    monkeypatch.chdir(tmp_path)  # where nobody knows an API before the worker does
    arrivals_s: list[float] = []

    async def answer(exchange: Exchange) -> None:
        arrivals_s.append(time.monotonic())
        await exchange.answer()

    server = RedisProcess(tmp_path, durable=True).start()
    try:
        server.ready()
        with (
            faulty_server(answer) as api,
            redis.Redis.from_url(server.url) as connection,
            Client(server.url) as client,
        ):
            batch = client.submit([Job("POST", f"/{n}", api="near", id=f"j{n}") for n in range(JOBS)])

            def done() -> int:
                return int(connection.hget(BatchKeys(batch.id).meta, "succeeded") or 0)

            with worker_on(server, tmp_path, api.url("")):
                until(lambda: done() >= AT_BACKUP)
                back_up(connection, server.folder, tmp_path / "backup")
                until(lambda: done() >= AT_LOSS)
            server.kill()
            made = len(api.requests)
            restore(server, tmp_path / "backup")
            restored = done()
            assert AT_BACKUP <= restored < AT_LOSS
            with worker_on(server, tmp_path, api.url("")):
                batch.wait(40)
            outcomes = Counter((outcome.id, outcome.ok) for outcome in batch.outcomes())
            requests = list(api.requests)
    finally:
        server.teardown()
    assert outcomes == Counter((f"j{n}", True) for n in range(JOBS))
    assert len(requests) == made + JOBS - restored
    keys = defaultdict(set)
    for request in requests:
        keys[request.target].add(request.headers["idempotency-key"])
    assert {len(of_job) for of_job in keys.values()} == {1}
    in_a_second = [sum(at_s - 1 < other_s <= at_s for other_s in arrivals_s) for at_s in arrivals_s]
    assert max(in_a_second) <= LIMIT_PER_S * BUSY_MACHINE
