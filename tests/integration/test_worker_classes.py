"""Who goes first: batches of several priorities and tenants on one API, real workers, real sockets."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from bound_lines import line_of
from local_nodes import LocalWorker, WorkerProcess, until, write_profiles
from scripted_api import ScriptedApi, scripted_api

from callmill.config.celery import app, lane_queue_key
from callmill.ledger.keys import LINES
from callmill.producer import Batch, Client, Job

WAIT_S = 20
SOON_S = 1.5
"""What looking for new lines (0.5 s), a poll of the queues (0.25 s) and a commit take, on a busy machine."""

CONNECTIONS = 4
THREADS = 4
SLOW, URGENT = "/wait/0.04", "/wait/0.040"
"""The same work; the API's log tells them apart."""


@dataclass
class Site:
    """An API, a client, and workers on request."""

    client: Client
    api: ScriptedApi
    redis: redis.Redis
    workers: list[LocalWorker]
    start: Callable[[], LocalWorker]

    def submit(self, count: int, url: str, api: str, **traffic: str) -> Batch:
        """Submit ``count`` equal jobs."""
        return self.client.submit((Job("GET", url, api=api) for _ in range(count)), **traffic)

    def seconds_to_first_outcome(self, batch: Batch, since_s: float) -> float:
        """Wait for a batch's first outcome."""
        next(batch.outcomes())
        return time.monotonic() - since_s

    def arrivals(self, *targets: str) -> Counter[str]:
        """Count the requests from the first to the last one for the last of these targets."""
        times = [at for at, (_, target) in enumerate(self.api.arrivals) if target == targets[-1]]
        return Counter(target for _, target in self.api.arrivals[times[0] : times[-1] + 1])


@pytest.fixture
def site(redis_url, tmp_path) -> Iterator[Site]:
    """Serve a paced and an unpaced API; one call takes 40 ms, and few are in flight at a time."""
    workers: list[LocalWorker] = []
    with redis.Redis.from_url(redis_url) as connection, scripted_api() as api, Client(redis_url) as client:
        common = [f'base_url = "{api.url}"', f"max_connections = {CONNECTIONS}", "tenants = { big = 3 }"]
        profiles = {"paced": [*common, 'limits = ["40/second"]'], "free": common}
        apis = write_profiles(Path(tmp_path) / "apis.toml", profiles)
        settings = {"chunks_per_process": THREADS, "lease_s": 1}

        def start() -> LocalWorker:
            worker = LocalWorker(WorkerProcess(tmp_path, redis_url, apis, settings).start(), app)
            workers.append(worker)
            worker.ready()
            return worker

        start()
        yield Site(client, api, connection, workers, start)
        for worker in workers:
            worker.teardown()


@pytest.mark.parametrize("api", ["paced", "free"])
def test_interactive_goes_before_bulk_and_bulk_goes_on(site, api):
    """Behind a long bulk batch an interactive one starts at once, gets most of the calls, and the bulk goes on."""
    bulk = site.submit(3000, SLOW, api, priority="bulk")
    until(lambda: bulk.progress().done > 40, WAIT_S)
    since_s = time.monotonic()
    urgent = site.submit(40, URGENT, api, priority="interactive")
    assert site.seconds_to_first_outcome(urgent, since_s) < SOON_S
    assert urgent.wait(WAIT_S).succeeded == 40
    arrivals = site.arrivals(SLOW, URGENT)
    assert 2 <= arrivals[SLOW] <= 25  # by the weights: 40 / 8, and what was on its way
    assert not bulk.progress().ended


@pytest.mark.parametrize("api", ["paced", "free"])
def test_tenant_does_not_wait_for_another_ones_queue(site, api):
    """Behind a long batch of one tenant another tenant starts at once, and both share by their weights."""
    big = site.submit(3000, SLOW, api, tenant="big")
    until(lambda: big.progress().done > 40, WAIT_S)
    since_s = time.monotonic()
    small = site.submit(20, URGENT, api, tenant="small")
    assert site.seconds_to_first_outcome(small, since_s) < SOON_S
    assert small.wait(WAIT_S).succeeded == 20
    assert 35 <= site.arrivals(SLOW, URGENT)[SLOW] <= 85  # by the weights: 60


def test_more_tenants_than_threads(site):
    """Twenty tenants with long queues on four threads are all served within seconds."""
    batches = [site.submit(400, SLOW, "free", tenant=f"t{n}") for n in range(20)]
    until(lambda: all(batch.progress().done for batch in batches), WAIT_S / 2, "everyone is served")
    assert not any(batch.progress().ended for batch in batches)


@pytest.mark.chaos
def test_killed_worker_loses_nothing_in_a_line(site):
    """Chunks of a line that a killed worker held are done by another one."""
    site.start()
    batch = site.submit(150, SLOW, "free", priority="interactive", tenant="acme")
    until(lambda: batch.progress().done > 20, WAIT_S)
    site.workers[0].kill()
    progress = batch.wait(WAIT_S)
    assert (progress.succeeded, progress.total) == (150, 150)
    assert len({outcome.index for outcome in batch.outcomes()}) == 150


@pytest.mark.chaos
def test_hints_of_a_line_that_are_lost_come_again(site):
    """Chunks of a line whose hints the broker lost are found, in a line that nobody serves yet."""
    site.workers[0].kill()
    batch = site.submit(50, "/ok", "free", priority="bulk")
    assert site.redis.delete(lane_queue_key(line_of(site.redis, batch.id, "free"))) == 1
    site.start()
    assert batch.wait(WAIT_S).succeeded == 50


def test_failed_jobs_run_again_in_their_line(site):
    """Failed jobs that are run again wait in the line of their batch, also a forgotten one; nothing else stays."""
    batch = site.submit(50, "/status/404", "free", priority="bulk", tenant="acme")
    assert batch.wait(WAIT_S).failed == 50
    site.redis.delete(LINES)
    assert batch.retry_failed() == 50
    progress = batch.wait(WAIT_S)
    assert (progress.failed, progress.calls, progress.priority, progress.tenant) == (50, 100, "bulk", "acme")
    line = line_of(site.redis, batch.id, "free")
    assert line.endswith("@bulk@acme")
    assert site.redis.zrange(LINES, 0, -1) == [line.encode()]
    assert list(site.redis.scan_iter("*@*")) == []
    bindings = [
        member for key in site.redis.scan_iter("*_kombu.binding*", _type="set") for member in site.redis.smembers(key)
    ]
    assert [member for member in bindings if b"lane.free@" in member] == []
