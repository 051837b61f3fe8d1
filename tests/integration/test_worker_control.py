"""Batches that are steered, run out of time or lose their producer, while real workers hold them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis
from local_nodes import LocalWorker, WorkerProcess, until, write_profiles
from scripted_api import ScriptedApi, scripted_api

from callmill.config.celery import app
from callmill.errors import BatchNotFoundError, BatchStateError, UsageError, WaitTimeoutError
from callmill.ledger import keys
from callmill.ledger.fleet import STATUS_EVERY_S
from callmill.producer import Batch, Client, Job

WAIT_S = 20
OPEN_BATCH_S = 3


@dataclass
class Site:
    """A client, an API that tells what it was asked, two workers, and a Redis connection."""

    client: Client
    script: ScriptedApi
    redis: redis.Redis

    def asked(self, url: str) -> int:
        """Return how many calls for a URL have arrived."""
        return sum(target == url for _, target in self.script.arrivals)

    def leases(self, batch: Batch) -> int:
        """Return how many chunks of the batch workers hold."""
        return int(self.redis.hget(keys.BatchKeys(batch.id).meta, "leased") or 0)


@pytest.fixture(scope="module")
def site(redis_server, tmp_path_factory) -> Iterator[Site]:
    """Start everything once for the module."""
    folder = tmp_path_factory.mktemp("control")
    with redis.Redis.from_url(redis_server.url) as connection, scripted_api() as script:
        connection.flushall()
        profiles = {
            "narrow": [f'base_url = "{script.url}"', "max_connections = 2"],
            "paced": [f'base_url = "{script.url}"', 'limits = ["12/minute"]'],
            "slow": [f'base_url = "{script.url}"', 'limits = ["1/hour"]'],
        }
        apis = write_profiles(Path(folder) / "apis.toml", profiles)
        settings = {"open_batch_hours": OPEN_BATCH_S / 3600}
        workers = [LocalWorker(WorkerProcess(folder, redis_server.url, apis, settings).start(), app) for _ in range(2)]
        try:
            with Client(redis_server.url) as client:
                for worker in workers:
                    worker.ready()
                yield Site(client, script, connection)
        finally:
            for worker in workers:
                worker.teardown()


def test_a_call_that_timed_out_is_never_made(site):
    """A call whose caller stopped waiting says that it waited for the limit, and does not start when that allows it."""
    spent = site.client.submit([Job("GET", "/spent", api="paced")])
    assert spent.wait(WAIT_S).ended
    # Long enough for a worker to report what it waits for, and shorter than the limit makes the call wait.
    with pytest.raises(WaitTimeoutError, match=r"GET /late of paced has no outcome after 3.0 s: limit paced 12/minute"):
        site.client.call(Job("GET", "/late", api="paced"), timeout=3 * STATUS_EVERY_S)
    later = site.client.submit([Job("GET", "/later", api="paced")])
    assert later.wait(WAIT_S).succeeded == 1
    assert site.asked("/late") == 0


@pytest.mark.parametrize(
    ("steer", "url"), [(Batch.pause, "/wait/2.5"), (Batch.cancel, "/wait/2.50"), (Batch.delete, "/wait/2.500")]
)
def test_steering_reaches_workers_that_record_nothing(site, steer, url):
    """What is paused, cancelled or deleted starts no call when those in flight, which take long, make room."""
    batch = site.client.submit([Job("GET", url, api="narrow")] * 400)
    until(lambda: site.asked(url) == 4, WAIT_S, "both workers are busy with it")
    steer(batch)
    steer(batch)
    until(lambda: site.leases(batch) == 0, WAIT_S, "nobody holds anything of it")
    assert site.client.call(Job("GET", "/ok", api="narrow")).ok
    assert site.asked(url) == 4
    if steer is Batch.delete:
        with pytest.raises(BatchNotFoundError):
            batch.progress()
    else:
        assert batch.progress().done == 4
        batch.cancel()


def test_jobs_end_at_their_batch_deadline_although_no_call_can_start(site):
    """Jobs that wait for a limit fail when the batch's deadline comes: those a worker holds, and those that wait."""
    deadline = datetime.now(UTC) + timedelta(seconds=3)
    batch = site.client.submit([Job("GET", "/ok", api="slow")] * 1000, deadline=deadline)
    progress = batch.wait(WAIT_S)
    assert datetime.now(UTC) >= deadline
    assert (progress.total, progress.done, progress.failed) == (1000, 1000, 1000 - progress.succeeded)
    assert progress.calls == progress.succeeded <= 1
    codes = {outcome.error.code for outcome in batch.outcomes() if outcome.error}
    assert codes == {"deadline"}
    until(lambda: not site.redis.zcard(keys.DEADLINES), WAIT_S, "nobody looks after it any more")


def test_job_ends_at_its_own_deadline_although_no_call_can_start(site):
    """A job with a deadline, in a chunk with others that have none, fails when it comes; the others wait on."""
    deadline = datetime.now(UTC) + timedelta(seconds=2)
    site.client.submit([Job("GET", "/ok", api="slow")]).cancel()  # the hour's only call, if it was not made yet
    jobs = [Job("GET", "/ok", api="slow", deadline=deadline if n % 2 else None) for n in range(50)]
    batch = site.client.submit(jobs)
    until(lambda: batch.progress().done >= 25, WAIT_S, "the jobs with a deadline are over")
    assert batch.progress().failed == 25
    assert {outcome.index % 2 for outcome in _some(batch, 25) if not outcome.ok} == {1}
    batch.cancel()


def test_deadline_without_a_time_zone_is_refused(site):
    """A deadline that could be any hour is refused, and no batch is left of it."""
    before = site.redis.zcard(keys.BATCHES)
    with pytest.raises(UsageError, match="time zone"):
        site.client.submit([], deadline=datetime(2030, 1, 1))  # noqa: DTZ001 - this is the mistake
    assert site.redis.zcard(keys.BATCHES) == before


def test_batch_whose_producer_died_expires(site):
    """A batch that is never sealed is cancelled after a while, says why, and never counts as complete."""
    batch_id = _leave_open(site, "expires")
    batch = site.client.batch(batch_id)
    progress = batch.wait(WAIT_S)
    assert (progress.state, progress.sealed, progress.done) == ("cancelled", False, 0)
    assert "never sealed it" in progress.limited_by
    assert site.asked("/ok?expires") == 0
    with pytest.raises(BatchStateError):
        batch.seal()


def test_batch_whose_producer_died_is_sealed_by_its_owner(site):
    """A batch that was left open runs once its owner seals it, and is complete with what it has."""
    batch = site.client.batch(_leave_open(site, "sealed"))
    assert batch.seal() == batch.seal() == 10
    assert batch.wait(WAIT_S).succeeded == 10
    assert site.redis.zscore(keys.OPEN, batch.id) is None


def _leave_open(site: Site, name: str) -> str:
    """Do what a producer does that dies before the seal."""
    from callmill.producer.event_loop_thread import EventLoopThread  # noqa: PLC0415 - only here

    client, run = site.client.async_client(), EventLoopThread.shared().run
    submission = run(client.open_submission(name=name))
    for _ in range(10):
        submission.add(Job("GET", f"/ok?{name}", api="narrow"))
    run(submission.flush())
    return submission.batch_id


def _some(batch: Batch, count: int) -> list:
    outcomes = batch.outcomes()
    return [next(outcomes) for _ in range(count)]
