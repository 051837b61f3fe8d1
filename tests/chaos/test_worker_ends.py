"""Workers that are stopped, killed and cut off under load: nothing is lost, nothing has two outcomes."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest
import redis
from bound_lines import line_of
from local_nodes import LocalBroker, LocalWorker, until, write_profiles
from scripted_api import scripted_api
from tcp_forwarder import Forwarder

from callmill.config.celery import lane_queue_key
from callmill.config.limit_spec import parse_limit
from callmill.ledger import keys
from callmill.producer import Batch, Client, Job
from callmill.simulator import SimulatorOptions, SimulatorProcess
from callmill.simulator.latency import parse_latency

pytestmark = pytest.mark.chaos

JOBS = 1500
LEASE_S = 2
WAIT_S = 30


@dataclass
class Site:
    """A Redis server of its own, an API that logs every call, a client, and workers on request."""

    broker: LocalBroker
    api: SimulatorProcess
    client: Client
    log: Path
    start: Callable[[], LocalWorker]

    def submit(self, count: int = JOBS) -> Batch:
        """Submit calls that must not be repeated, so that each has a key."""
        return self.client.submit(Job("POST", f"/{n}", api="api", id=str(n), json=n) for n in range(count))

    def under_load(self, batch: Batch) -> None:
        """Wait until the batch is well on its way."""
        until(lambda: batch.progress().done >= 50, WAIT_S, "the batch runs")

    def calls_per_job(self) -> Counter[str]:
        """Return how often each job was called, as the API saw it; always with the one key that is this job's."""
        self.api.stats()  # flushes the log
        calls = [json.loads(line) for line in self.log.read_text().splitlines()]
        per_key = Counter((call["path"].strip("/"), call["idempotency_key"]) for call in calls)
        per_job = Counter({job: count for (job, _), count in per_key.items()})
        assert len(per_job) == len(per_key) == len({key for _, key in per_key})
        return per_job


def assert_complete(batch: Batch, count: int = JOBS) -> None:
    """Every job has exactly one outcome, a good one, with the answer to its own request."""
    outcomes = list(batch.outcomes())
    assert sorted(int(outcome.id) for outcome in outcomes) == list(range(count))
    assert all(outcome.ok and outcome.json()["body"] == int(outcome.id) for outcome in outcomes)
    progress = batch.progress()
    assert (progress.succeeded, progress.failed, progress.total) == (count, 0, count)


@pytest.fixture
def site(celery_broker, start_worker, tmp_path, monkeypatch) -> Iterator[Site]:
    """Set the site up; its API takes 20 to 60 ms a call and at most 40 at a time, so that a batch lasts seconds."""
    monkeypatch.chdir(tmp_path)  # where no profiles file is: the client takes jobs before any worker was there
    log = tmp_path / "calls.jsonl"
    options = SimulatorOptions(latency=parse_latency("20ms-60ms"), log=log, seed=1)
    settings = {"lease_s": LEASE_S, "shutdown_grace_s": 10}
    with SimulatorProcess(options) as api, Client(celery_broker.url) as client:
        lines = [f'base_url = "{api.url}"', "max_connections = 20", "retry = { attempts = 50, base = 0.1, cap = 0.5 }"]
        apis = write_profiles(tmp_path / "apis.toml", {"api": lines})
        yield Site(celery_broker, api, client, log, lambda: start_worker(celery_broker.url, apis, settings))


def test_sigterm_under_load(site):
    """A worker asked to stop ends with 0, no call of it is repeated, and another worker does the rest."""
    first = site.start()
    batch = site.submit()
    site.under_load(batch)
    first.send(signal.SIGTERM)
    assert first.wait() == 0
    done = batch.progress().done
    assert 50 <= done < JOBS
    site.start()
    assert batch.wait(WAIT_S).ended
    assert_complete(batch)
    assert set(site.calls_per_job().values()) == {1}


def test_sigkill_under_load(site):
    """A killed worker's jobs are done elsewhere with their own keys; none that was recorded is called again."""
    first, second = site.start(), site.start()
    batch = site.submit()
    site.under_load(batch)
    first.kill()
    killed_s = time.monotonic()
    recorded = list(islice(batch.outcomes(), batch.progress().done))
    assert batch.wait(WAIT_S).ended
    assert time.monotonic() - killed_s < LEASE_S + 10
    assert_complete(batch)
    assert second.container.status == "running"
    calls = site.calls_per_job()
    assert len(calls) == JOBS
    assert all(calls[outcome.id] == 1 for outcome in recorded)


def test_sigkill_of_every_worker(site):
    """Workers killed one after the other lose nothing; the last one finds everything."""
    batch = site.submit(1000)
    for done in (50, 400):
        worker = site.start()
        until(lambda done=done: batch.progress().done >= done, WAIT_S)
        worker.kill()
    site.start()
    assert batch.wait(WAIT_S).ended
    assert_complete(batch, 1000)


def test_sigquit_does_not_crash(site):
    """A cold shutdown ends the worker in order; what it left is done by another one."""
    first = site.start()
    batch = site.submit(600)
    site.under_load(batch)
    first.send(signal.SIGQUIT)
    first.wait()
    assert "Traceback" not in first.logs()
    site.start()
    assert batch.wait(WAIT_S).ended
    assert_complete(batch, 600)


def test_sigquit_while_an_event_is_being_sent(site, start_worker, tmp_path):
    """A cold shutdown ends the worker also where its signal interrupts the sending of an event."""
    chunks = 30  # more than the 24 events that Celery gathers before it sends them of its own accord
    settings = {"chunks_per_process": chunks, "shutdown_grace_s": 1}
    with Forwarder(site.broker.container.port) as link, scripted_api() as api:
        apis = write_profiles(tmp_path / "slow.toml", {"slow": [f'base_url = "{api.url}"', "max_connections = 100"]})
        worker = start_worker(link.url, apis, settings)
        batches = [site.client.submit([Job("GET", "/hang", api="slow")]) for _ in range(chunks)]
        metas = [keys.BatchKeys(batch.id).meta for batch in batches]
        with redis.Redis.from_url(site.broker.url) as connection:
            until(lambda: all(connection.hget(meta, "leased") == b"1" for meta in metas), WAIT_S, "all chunks are held")
            until(lambda: link.silence(b"celeryev/worker.heartbeat"), WAIT_S, "an event was sent")
            until(link.unheard, WAIT_S, "an event that gets no answer")
            worker.send(signal.SIGQUIT)
            until(lambda: not any(int(connection.hget(meta, "leased") or 0) for meta in metas), WAIT_S, "all put back")
        link.lead_to(site.broker.container.port)
        worker.wait(WAIT_S)


def test_lost_hints_heal(site):
    """Hints lost with their whole queue are published again, although nobody asks for it."""
    with redis.Redis.from_url(site.broker.url) as connection:
        batch = site.submit(600)
        line = line_of(connection, batch.id)
        assert connection.delete(lane_queue_key(line)) == 1
        assert connection.zcard(keys.queued(line)) == 6
    site.start()
    assert batch.wait(WAIT_S).ended
    assert_complete(batch, 600)


def test_producer_that_died_before_it_started_its_batch(site):
    """A sealed batch whose producer died before it queued the chunks is started by the workers."""
    client = site.client.async_client()

    class DiedError(Exception):
        pass

    async def die(_: str) -> None:
        raise DiedError

    client_batches = site.client.submit([]).progress()  # opens the connection
    assert client_batches.total == 0
    connection = client._connection
    assert connection is not None
    unpark, connection.batches.unpark = connection.batches.unpark, die
    with pytest.raises(DiedError):
        site.submit(300)
    connection.batches.unpark = unpark
    (progress, *_) = site.client.batches(1)
    batch = site.client.batch(progress.id)
    assert (progress.total, progress.sealed, progress.done) == (300, True, 0)
    site.start()
    assert batch.wait(WAIT_S).ended
    assert_complete(batch, 300)


def test_redis_restart_under_load(site):
    """A Redis server that is killed and comes back with its append-only file costs neither a job nor an outcome."""
    worker = site.start()
    batch = site.submit()
    site.under_load(batch)
    site.broker.kill()
    time.sleep(1)  # the outage itself
    site.broker.container.start().ready()
    assert batch.wait(WAIT_S).ended
    assert_complete(batch)
    assert worker.container.status == "running"
    assert "worker died" not in worker.logs()


def test_redis_away_while_a_worker_stops(site):
    """A worker that is asked to stop while Redis is away still ends, and its jobs are done later."""
    first = site.start()
    batch = site.submit(600)
    site.under_load(batch)
    site.broker.kill()
    first.send(signal.SIGTERM)
    site.broker.container.start().ready()
    first.wait(40)
    site.start()
    assert batch.wait(WAIT_S).ended
    assert_complete(batch, 600)


def test_redis_gone_for_good_while_a_worker_stops(celery_broker, start_worker, tmp_path, monkeypatch):
    """A worker that is asked to stop ends although what it has in hand can never be recorded, and says so."""
    monkeypatch.chdir(tmp_path)
    options = SimulatorOptions(latency=parse_latency("20ms-60ms"), seed=1)
    with SimulatorProcess(options) as api, Client(celery_broker.url) as client:
        apis = write_profiles(tmp_path / "apis.toml", {"api": [f'base_url = "{api.url}"', "max_connections = 2"]})
        worker = start_worker(celery_broker.url, apis, {"shutdown_grace_s": 1})
        batch = client.submit(Job("POST", f"/{n}", api="api", json=n) for n in range(600))
        until(lambda: batch.progress().done >= 50, WAIT_S, "the batch runs")
        celery_broker.kill()
        worker.send(signal.SIGTERM)
        worker.wait(60)
    assert "given up: Redis is away" in worker.logs()


def test_dead_workers_jobs_wait_for_no_thread(celery_broker, start_worker, tmp_path, monkeypatch):
    """What a killed worker had is done while every thread of the other one is taken by a long chunk."""
    monkeypatch.chdir(tmp_path)
    options = SimulatorOptions(latency=parse_latency("300ms"), seed=1)
    with SimulatorProcess(options) as api, Client(celery_broker.url) as client:
        apis = write_profiles(tmp_path / "apis.toml", {"api": [f'base_url = "{api.url}"', "max_connections = 2"]})
        settings = {"lease_s": LEASE_S, "chunks_per_process": 1}
        first = start_worker(celery_broker.url, apis, settings)
        mine = client.submit(Job("POST", f"/{n}", api="api", json=n) for n in range(50))
        until(lambda: mine.progress().done >= 4, WAIT_S, "the first worker has its chunk")
        second = client.submit(Job("POST", f"/{n}", api="api", json=n) for n in range(100))
        start_worker(celery_broker.url, apis, settings)
        until(lambda: second.progress().done, WAIT_S, "the second worker has a chunk of 15 s in its only thread")
        assert not mine.progress().ended
        first.kill()
        assert mine.wait(WAIT_S).succeeded == 50
        assert not second.progress().ended


def test_limits_hold_over_kills(site, celery_broker, start_worker, tmp_path):
    """No limit of the API is broken by workers that share it, are killed, and come back."""
    options = SimulatorOptions(limits=(parse_limit("100/second"),), seed=1)
    with SimulatorProcess(options) as api:
        lines = [f'base_url = "{api.url}"', 'limits = ["100/second"]', 'enforcer = "sliding"']
        apis = write_profiles(tmp_path / "strict.toml", {"strict": lines})
        nodes = [start_worker(celery_broker.url, apis, {"lease_s": LEASE_S}) for _ in range(2)]
        batch = site.client.submit(Job("POST", f"/{n}", api="strict", id=str(n), json=n) for n in range(600))
        site.under_load(batch)
        nodes[0].kill()
        assert batch.wait(WAIT_S).ended
        assert_complete(batch, 600)
        assert api.stats()["rejected"] == 0
