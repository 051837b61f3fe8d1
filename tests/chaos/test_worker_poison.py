"""Jobs that kill the worker which runs them, in real processes: they alone fail, at a known cost in workers."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import redis
from bound_lines import line_of
from local_nodes import WorkerProcess, until, write_profiles

from callmill.config.redis_connections import connect
from callmill.ledger import ChunkRef, Chunks, Claim, LedgerSession, keys
from callmill.ledger.hints import HintPublisher
from callmill.ledger.keys import RECONCILER_LOCK, BatchKeys
from callmill.producer import Batch, Client, Job
from callmill.simulator import SimulatorOptions, SimulatorProcess
from callmill.simulator.latency import parse_latency

pytestmark = pytest.mark.chaos

HOOK = """
import os, signal

def cost(job):
    if "poison" in job["url"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return 1
"""
DEATHS_OF_ONE = 3 + 1 + 3
"""With others, alone as a chunk, alone as a job."""


@dataclass
class Supervised:
    """Workers, one at a time, started again whenever one dies; the lease of a dead one ends at once."""

    redis: redis.Redis
    client: Client
    hints: HintPublisher
    make_worker: Callable[[], WorkerProcess]
    deaths: int = 0

    def see_through(self, batch: Batch, at_most: int) -> None:
        """Keep a worker running until the batch has ended."""
        while True:
            worker = self.make_worker().start()
            try:
                until(lambda worker=worker: worker.status != "running" or batch.progress().ended, 60, "death or end")
                if worker.status == "running":
                    return
            finally:
                worker.teardown()
            assert worker.process.returncode == -signal.SIGKILL, worker.logs()
            self.deaths += 1
            assert self.deaths <= at_most
            self.end_leases(batch)

    def end_leases(self, batch: Batch) -> None:
        """Let time pass: the leases of the dead worker, and its turn as reconciler, are over."""
        self.redis.delete(RECONCILER_LOCK)
        members = [member for member in self.redis.zrange(keys.DUE, 0, -1) if member.startswith(batch.id)]
        self.redis.zadd(keys.DUE, dict.fromkeys(members, 0), xx=True)
        numbers = self.redis.hkeys(BatchKeys(batch.id).state)
        line = line_of(self.redis, batch.id)
        self.hints.publish([ChunkRef(batch.id, int(number), line) for number in numbers])


@pytest.fixture
def supervised(redis_url, client, tmp_path, monkeypatch) -> Iterator[Supervised]:
    """Serve an API whose cost hook kills the process for some jobs."""
    (tmp_path / "deadly_hook.py").write_text(HOOK)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])))
    hints = HintPublisher(redis_url)
    with (
        SimulatorProcess(SimulatorOptions(latency=parse_latency("30ms"), seed=1)) as api,
        redis.Redis.from_url(redis_url, decode_responses=True) as connection,
    ):
        limits = ['limits = ["60000000 tokens/minute"]', 'enforcer = "bucket"', "burst = 1000"]
        lines = [f'base_url = "{api.url}"', *limits, 'cost = "deadly_hook:cost"']
        apis = write_profiles(tmp_path / "apis.toml", {"api": lines})
        yield Supervised(connection, client, hints, lambda: WorkerProcess(tmp_path, redis_url, apis, {}))
    hints.close()


def test_exactly_the_job_that_kills_its_workers_fails(supervised):
    """Of several chunks in flight, one job of one kills every worker: it fails with the reason, all others succeed."""
    jobs = [Job("POST", "/poison" if n == 130 else f"/{n}", api="api", id=str(n), json=n) for n in range(400)]
    batch = supervised.client.submit(jobs)
    supervised.see_through(batch, DEATHS_OF_ONE)
    outcomes = {outcome.id: outcome for outcome in batch.outcomes()}
    assert len(outcomes) == 400
    assert [outcome.id for outcome in outcomes.values() if not outcome.ok] == ["130"]
    error = outcomes["130"].error
    assert (error.code, error.message.count("3 died while nothing but this job ran")) == ("poison", 1)
    assert f"after {DEATHS_OF_ONE - 3} that ran it with others" in error.message
    assert supervised.deaths == DEATHS_OF_ONE
    names = BatchKeys(batch.id)
    assert supervised.redis.exists(names.suspects) == 0
    assert supervised.redis.hlen(names.state) == 1  # of the chunk whose failed job may be tried again


def test_chunks_of_dead_workers_run_alone_once(supervised, redis_url):
    """Chunks whose workers died three times over, for no fault of theirs, run one after the other, and all is well."""
    batch = supervised.client.submit(Job("POST", f"/{n}", api="api", id=str(n), json=n) for n in range(300))

    async def die() -> None:
        async with connect(redis_url) as connection:
            chunks = Chunks(LedgerSession(connection), worker="dead")
            for number in range(3):
                ref = ChunkRef(batch.id, number, line_of(supervised.redis, batch.id))
                assert isinstance(await chunks.claim(ref), Claim)

    for _ in range(3):
        asyncio.run(die())
        supervised.end_leases(batch)
    worker = supervised.make_worker().start()
    try:
        assert batch.wait(60).succeeded == 300
        assert worker.logs().count("runs alone: 3 workers") == 3
    finally:
        worker.teardown()
    names = BatchKeys(batch.id)
    assert supervised.redis.exists(names.suspects, names.state) == 0
