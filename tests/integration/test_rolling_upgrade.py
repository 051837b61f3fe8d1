"""A rolling upgrade: workers of this version together with some of a next one, which writes format 2 and reads both."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from local_nodes import WorkerProcess, until, write_profiles
from scripted_api import ScriptedApi, scripted_api

from callmill.cli.doctor_checks import check_workers
from callmill.cli.problems import fleet_problems
from callmill.config.redis_connections import connect
from callmill.config.redis_safety import Level
from callmill.errors import UnknownFormatError
from callmill.jobs.formats import FORMAT
from callmill.ledger import LedgerSession
from callmill.ledger.fleet import Fleet
from callmill.ledger.keys import BatchKeys
from callmill.producer import Job

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).parents[2]
PARTS = ("config", "core", "producer", "workers")
NEXT = FORMAT + 1
JOBS_BEFORE, JOBS_NEXT, JOBS_AFTER = 400, 100, 400

SUBMIT = """
import sys
from callmill.producer import Client, Job
with Client(sys.argv[1]) as client:
    print(client.submit([Job("GET", f"/next/{n}", api="near") for n in range(int(sys.argv[2]))], name="next").id)
"""
OUTCOMES = """
import sys, json
from callmill.producer import Client
with Client(sys.argv[1]) as client:
    batch = client.batch(sys.argv[2])
    batch.wait(30)
    print(json.dumps([[outcome.id, outcome.ok] for outcome in batch.outcomes()]))
"""


class NextWorker(WorkerProcess):
    """A worker of the next version."""

    tree = ""

    def environment(self) -> dict[str, str]:
        """Return the worker's settings."""
        return {**super().environment(), "PYTHONPATH": self.tree}


@pytest.fixture
def next_tree(tmp_path: Path) -> str:
    """Make the next version of the programs, and return where Python finds it."""
    for part in PARTS:
        shutil.copytree(ROOT / part / "callmill", tmp_path / "next" / part / "callmill")
    formats = tmp_path / "next/core/callmill/jobs/formats.py"
    text = formats.read_text()
    assert f"\nFORMAT = {FORMAT}\n" in text
    formats.write_text(text.replace(f"\nFORMAT = {FORMAT}\n", f"\nFORMAT = {NEXT}\n"))
    return os.pathsep.join(str(tmp_path / "next" / part) for part in PARTS)


@pytest.fixture
def api() -> Iterator[ScriptedApi]:
    """Serve an API that counts what it is asked."""
    with scripted_api() as serving:
        yield serving


def run_next(tree: str, program: str, *arguments: str) -> str:
    """Run a program of the next version and return what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CALLMILL_")}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(
        command, env={**environment, "PYTHONPATH": tree}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


async def fleet_now(redis_url: str) -> list:
    """Return what the workers report."""
    connection = connect(redis_url)
    try:
        return await Fleet(LedgerSession(connection)).workers()
    finally:
        await connection.aclose()


def test_rolling_upgrade_loses_and_repeats_nothing(client, redis_url, api, next_tree, tmp_path):
    """While old workers go one by one, batches of both formats run to their end: one call and one outcome a job.

    An old worker leaves a batch of the next format as it is, says so once, and its status and `doctor` say so, too.
    """
    apis = write_profiles(tmp_path / "apis.toml", {"near": [f'base_url = "{api.url}"', 'limits = ["200/second"]']})
    store = redis.Redis.from_url(redis_url)
    with ExitStack() as stack:
        stack.callback(store.close)

        def start(kind: type[WorkerProcess]) -> WorkerProcess:
            worker = kind(tmp_path, redis_url, apis, {"shutdown_grace_s": 10}).start()
            stack.callback(worker.teardown)
            return worker

        old = [start(WorkerProcess), start(WorkerProcess)]
        for worker in old:
            worker.ready()
        before = client.submit(Job("GET", f"/before/{n}", api="near") for n in range(JOBS_BEFORE))
        next_id = run_next(next_tree, SUBMIT, redis_url, str(JOBS_NEXT))
        told = (
            f"batch {next_id} was written by Callmill with ledger format {NEXT}, this program knows {FORMAT}: upgrade"
        )
        for worker in old:
            until(lambda worker=worker: told in worker.logs(), what="an old worker says that it is too old")
        with pytest.raises(UnknownFormatError, match=next_id):
            client.batch(next_id)
        assert store.hmget(BatchKeys(next_id).meta, "leased", "calls") == [b"0", b"0"]
        assert {state.decode().split("|", 1)[1] for state in store.hvals(BatchKeys(next_id).state)} <= {
            f"Q||{jobs}|0|0|0" for jobs in range(1, JOBS_NEXT + 1)
        }

        workers = until(
            lambda: [w for w in asyncio.run(fleet_now(redis_url)) if w.newer_format == [next_id]],
            what="an old worker's status names the batch",
        )
        assert {problem.what for problem in fleet_problems([], workers, [], "")} == {"newer_format"}
        assert check_workers(workers).level is Level.WARN

        NextWorker.tree = next_tree
        new = start(NextWorker)
        new.ready()
        until(lambda: store.hexists(BatchKeys(next_id).meta, "ended_ms"), what="the new worker does it beside old ones")
        assert [worker.status for worker in old] == ["running"] * 2
        after = client.submit(Job("GET", f"/after/{n}", api="near") for n in range(JOBS_AFTER))
        for worker in old:
            worker.kill(signal.SIGTERM)
            assert worker.process.returncode == 0, worker.logs()
        outcomes = json.loads(run_next(next_tree, OUTCOMES, redis_url, next_id))
        assert Counter(map(tuple, outcomes)) == Counter((f"{next_id}-{n}", True) for n in range(JOBS_NEXT))
        for batch, jobs in ((before, JOBS_BEFORE), (after, JOBS_AFTER)):
            batch.wait(30)
            wanted = Counter((f"{batch.id}-{n}", True) for n in range(jobs))
            assert Counter((outcome.id, outcome.ok) for outcome in batch.outcomes()) == wanted
        new.kill(signal.SIGTERM)
    asked = Counter(exchange.target for exchange in api.requests)
    assert len(asked) == JOBS_BEFORE + JOBS_NEXT + JOBS_AFTER
    assert max(asked.values()) == 1
    assert [worker.logs().count(told) for worker in old] == [1, 1]
    assert told not in new.logs()
