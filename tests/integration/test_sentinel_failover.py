"""A primary that goes away under load, and the Sentinels that put another one in its place: real processes, real calls.

The API counts strictly. It takes bursts that nobody is told of: what a busy machine delays by a quarter of a second
comes together, and must not count as broken.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from local_nodes import WorkerProcess, until, write_profiles
from sentinel_site import ReplicatedRedis, SentinelSite
from strict_api import StrictApi, strict_api

from callmill.config import redis_replication
from callmill.config.redis_safety import Level
from callmill.errors import RedisUnavailableError
from callmill.producer import Batch, Client, Job

pytestmark = pytest.mark.chaos

RATE, BURST = 60, 15
LEASE_S = 30
"""Longer than any failover takes: calls of a lease that ends meanwhile are repeated, and rightly so."""

WAIT_S = 60


@dataclass
class Scene:
    """Servers, an API, two workers and a client."""

    site: SentinelSite
    api: StrictApi
    client: Client
    workers: list[WorkerProcess]

    def submit(self, count: int) -> Batch:
        """Submit calls."""
        return self.client.submit(Job("POST", f"/{n}", api="api", id=str(n), json={"n": n}) for n in range(count))

    def under_load(self, batch: Batch, done: int) -> ReplicatedRedis:
        """Wait until so much of the batch is done, and return the primary."""
        until(lambda: batch.progress().done >= done, WAIT_S, "the batch runs")
        return self.site.primary()

    def assert_complete(self, batch: Batch, count: int) -> None:
        """Every job has one outcome, a good one, no limit was broken and no worker gave up."""
        until(lambda: _over(batch), WAIT_S, "the batch is over")
        outcomes = list(batch.outcomes())
        assert sorted(int(outcome.id) for outcome in outcomes) == list(range(count))
        assert all(outcome.ok for outcome in outcomes)
        progress = batch.progress()
        assert (progress.succeeded, progress.failed, progress.total) == (count, 0, count)
        assert self.api.broken == []
        for worker in self.workers:
            assert worker.status == "running", f"{worker.name} ended:\n{worker.logs()}"

    def repeated(self) -> int:
        """Return how many calls were made beyond one for each job."""
        return sum(count - 1 for count in Counter(call.target for call in self.api.accepted()).values())


def _over(batch: Batch) -> bool:
    try:
        return batch.progress().ended
    except RedisUnavailableError:  # what a program meets while nobody is the primary; it asks again
        return False


@contextlib.contextmanager
def scene(folder: Path, monkeypatch: pytest.MonkeyPatch, *, replicas: int, wait_replicas: int) -> Iterator[Scene]:
    """Set everything up."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CALLMILL_WAIT_REPLICAS", str(wait_replicas))
    with SentinelSite(folder, replicas) as site, strict_api(burst=BURST) as api, Client(site.url) as client:
        api.limit(f"{RATE}/second")
        lines = [f'base_url = "{api.url}"', f'limits = ["{RATE}/second"]', 'enforcer = "bucket"']
        apis = write_profiles(folder / "apis.toml", {"api": lines})
        settings = {"wait_replicas": wait_replicas, "lease_s": LEASE_S}
        workers = [WorkerProcess(folder, site.url, apis, settings).start() for _ in range(2)]
        try:
            for worker in workers:
                worker.ready()
            yield Scene(site, api, client, workers)
        finally:
            for worker in workers:
                worker.teardown()


def test_a_killed_primary_loses_nothing(tmp_path, monkeypatch):
    """Killed under load with a replica asked for: one outcome each, no call repeated, no limit broken."""
    with scene(tmp_path, monkeypatch, replicas=2, wait_replicas=1) as here:
        assert [finding.level for finding in redis_replication.sentinels(here.site.url)] == [Level.OK]
        batch = here.submit(300)
        old = here.under_load(batch, 60)
        old.kill()
        here.site.wait_for_another_than(old)
        here.assert_complete(batch, 300)
        assert here.repeated() == 0


def test_a_frozen_primary_that_wakes_up_as_one_too_many(tmp_path, monkeypatch):
    """An old primary that goes on when another one is in its place takes nobody along; nothing is lost."""
    with scene(tmp_path, monkeypatch, replicas=2, wait_replicas=1) as here:
        batch = here.submit(400)
        old = here.under_load(batch, 100)
        old.send(signal.SIGSTOP)
        here.site.wait_for_another_than(old)
        before = len(here.api.accepted())
        until(lambda: len(here.api.accepted()) > before + RATE, WAIT_S, "calls go on")
        old.send(signal.SIGCONT)
        here.assert_complete(batch, 400)


@pytest.mark.parametrize("befalls", ["kill", "failover"])
def test_what_replication_loses_is_healed(tmp_path, monkeypatch, befalls):
    """Without waiting for replicas calls may be repeated, yet each job has one outcome and no limit is broken."""
    with scene(tmp_path, monkeypatch, replicas=2, wait_replicas=0) as here:
        batch = here.submit(400)
        old = here.under_load(batch, 100)
        {"kill": old.kill, "failover": here.site.fail_over}[befalls]()
        here.site.wait_for_another_than(old)
        here.assert_complete(batch, 400)


def test_a_planned_change_repeats_nothing(tmp_path, monkeypatch):
    """With writes paused before the Sentinels are told to fail over, no call is repeated; nobody waits for replicas."""
    with scene(tmp_path, monkeypatch, replicas=2, wait_replicas=0) as here:
        batch = here.submit(400)
        old = here.under_load(batch, 100)
        with redis.Redis(port=old.port) as connection:
            connection.execute_command("CLIENT", "PAUSE", 15000, "WRITE")
        here.site.fail_over()
        here.site.wait_for_another_than(old)
        here.assert_complete(batch, 400)
        assert here.repeated() == 0


@pytest.mark.parametrize("befall", [ReplicatedRedis.kill, lambda old: old.send(signal.SIGSTOP)], ids=["kill", "freeze"])
def test_submits_during_failovers_are_whole_or_say_so(tmp_path, monkeypatch, befall: Callable[[ReplicatedRedis], None]):
    """Every batch that ``submit`` returned during a failover has all of its jobs afterwards, each with one outcome."""
    with scene(tmp_path, monkeypatch, replicas=2, wait_replicas=1) as here:
        here.api.limit("2000/second")
        accepted, enough = list[Batch](), threading.Event()

        def produce() -> None:
            while not enough.is_set():
                with contextlib.suppress(RedisUnavailableError):
                    accepted.append(here.client.submit(Job("GET", f"/{n}", api="api", id=str(n)) for n in range(5)))

        producer = threading.Thread(target=produce)
        producer.start()
        try:
            until(lambda: len(accepted) >= 20, WAIT_S, "batches are submitted")
            old = here.site.primary()
            befall(old)
            here.site.wait_for_another_than(old)
            count = len(accepted)
            until(lambda: len(accepted) >= count + 5, WAIT_S, "submits go on")
        finally:
            enough.set()
            producer.join()
        for batch in accepted:
            until(lambda batch=batch: _over(batch), WAIT_S, "each batch is over")
            assert sorted(outcome.id for outcome in batch.outcomes()) == list("01234")
