"""Redis, two workers, an API and a producer on machines of their own, with nothing between them but a network."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from local_nodes import RedisProcess, WorkerProcess, until, write_profiles
from machines import Machine, Switch, why_not
from strict_api import StrictApi, strict_api
from tcp_forwarder import Forwarder

from callmill.config.redis_connections import connect
from callmill.config.server_binary import find_server_binary
from callmill.ledger import LedgerSession
from callmill.ledger.fleet import Fleet
from callmill.producer import Batch, Client, Job
from callmill.producer.event_loop_thread import EventLoopThread

pytestmark = [pytest.mark.chaos, pytest.mark.netns]

PER_S = 100
LEASE_S = 2
FAR_S = 0.004
WAIT_S = 60
TAKEN_OVER_S = LEASE_S + 500 / PER_S + 15
"""The lease, the calls of a batch, and what a busy machine adds."""

PASSWORD = "of-the-test"


class _Redis(RedisProcess):
    """The server on a machine, with a password, its data on its disk."""

    def __init__(self, folder: Path, machine: Machine) -> None:
        super().__init__(folder)
        self._machine = machine

    def command(self) -> list[str]:
        """Return how to start it there."""
        where = ["--bind", self._machine.address, "--port", str(self.port), "--dir", str(self.folder)]
        options = ["--requirepass", PASSWORD, "--save", "", "--appendonly", "yes"]
        return self._machine.command(str(find_server_binary()), *where, *options)

    def url_by(self, port: int) -> str:
        """Return its URL by a port of its machine."""
        return f"redis://:{PASSWORD}@{self._machine.address}:{port}/0"


class _Worker(WorkerProcess):
    """``callmill worker`` on a machine, with profiles of its own."""

    ready_prompt = "ready, serves"

    def __init__(self, folder: Path, machine: Machine, redis_url: str, api_url: str) -> None:
        super().__init__(folder, redis_url, folder / f"{machine.address}.toml", {"lease_s": LEASE_S})
        limits = [f'limits = ["{PER_S}/second"]', 'enforcer = "bucket"', "burst = 20"]
        write_profiles(self._apis, {"paced": [f'base_url = "{api_url}"', *limits]})
        self.machine = machine

    def command(self) -> list[str]:
        """Return how to start it there."""
        return self.machine.command(sys.executable, "-m", "callmill.cli", "worker")


@dataclass(frozen=True)
class Site:
    """Everything, as seen from the producer's machine, where the test is."""

    client: Client
    redis_url: str
    api: StrictApi
    near: _Worker
    far: _Worker

    def submit(self, count: int) -> Batch:
        """Submit so many jobs."""
        return self.client.submit(Job("POST", "/x", api="paced", id=f"row-{n}") for n in range(count))

    def reporting(self) -> set[int]:
        """Return the workers, as process ids, that have said of late that they live."""

        async def pids() -> set[int]:
            connection = connect(self.redis_url)
            try:
                return {worker.pid for worker in await Fleet(LedgerSession(connection)).workers()}
            finally:
                await connection.aclose()

        return asyncio.run(pids())

    def calls_from(self, worker: _Worker) -> int:
        """Return how many calls the API has had from a worker's machine."""
        return sum(arrival.host == worker.machine.address for arrival in self.api.arrivals)

    def check(self, batch: Batch, count: int) -> None:
        """Wait for a batch: every outcome is there once and good, and the API found no limit broken."""
        batch.wait(WAIT_S)
        outcomes = list(batch.outcomes())
        assert sorted(outcome.id for outcome in outcomes) == sorted(f"row-{n}" for n in range(count))
        assert all(outcome.ok for outcome in outcomes)
        assert batch.progress().succeeded == count
        assert not self.api.broken


@contextmanager
def _teardown(node: RedisProcess | WorkerProcess) -> Iterator[None]:
    try:
        yield
    finally:
        node.teardown()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Plug everything together; the far worker's way to Redis is some milliseconds longer."""
    if reason := why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("machines")
    with ExitStack() as stack:
        switch = stack.enter_context(Switch())
        places = {name: switch.machine(name) for name in ("redis", "api", "near", "far", "producer")}
        redis = _Redis(folder, places["redis"])
        stack.enter_context(_teardown(redis.start()))
        redis.ready()
        with places["redis"].inside():
            longer_way = stack.enter_context(Forwarder(redis.port, host=places["redis"].address))
            longer_way.delay(FAR_S / 2)
        with places["api"].inside():
            api = stack.enter_context(strict_api(burst=20, host=places["api"].address))
            api.latency_s = 0.3
        workers = []
        for name, port in (("near", redis.port), ("far", longer_way.port)):
            worker = _Worker(folder, places[name], redis.url_by(port), api.url)
            stack.enter_context(_teardown(worker.start()))
            workers.append(worker)
        for worker in workers:
            worker.ready()
        stack.enter_context(places["producer"].inside())
        # The client's thread of this process may be at home already: it needs one that starts here.
        stack.enter_context(pytest.MonkeyPatch.context()).setattr(EventLoopThread, "_shared", None)
        client = stack.enter_context(Client(redis.url_by(redis.port)))
        yield Site(client, redis.url_by(redis.port), api, *workers)


def test_machines_share_one_limit(site):
    """Two machines, one of them far from Redis, both make calls, and the API's limit holds over both of them."""
    site.check(site.submit(400), 400)
    assert site.calls_from(site.near) > 40
    assert site.calls_from(site.far) > 40
    accepted = site.api.accepted()
    assert 399 / (accepted[-1].at_s - accepted[0].at_s) > 0.8 * PER_S


def test_a_machine_that_is_cut_off_is_replaced(site):
    """A machine loses its cable in mid-work: the other does its chunks, too, and when it is back nothing is twice."""
    worker = site.near
    before = site.calls_from(worker)
    batch = site.submit(500)
    until(lambda: site.calls_from(worker) > before + 50, WAIT_S, "the machine at work")
    worker.machine.cut()
    try:
        batch.wait(TAKEN_OVER_S)
        until(lambda: worker.process.pid not in site.reporting(), WAIT_S, "the machine missed")
    finally:
        worker.machine.mend()
    until(lambda: worker.process.pid in site.reporting(), WAIT_S, "the machine back")
    before = site.calls_from(worker)

    def works_again() -> bool:
        site.check(site.submit(100), 100)
        return site.calls_from(worker) > before

    until(works_again, WAIT_S, "the machine at work again")
    site.check(batch, 500)
