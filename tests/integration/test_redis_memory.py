"""A Redis whose memory fills up: producers wait, workers hold, and nothing is lost or done twice."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from local_nodes import LocalWorker, RedisProcess, WorkerProcess, until, write_profiles

from callmill.config.celery import app
from callmill.config.redis_connections import connect
from callmill.errors import RedisFullError
from callmill.jobs.wire import Chunk, WireJob, WireOutcome, encode_chunk
from callmill.ledger import Batches, Bundle, ChunkRef, Chunks, Claim, Finish, LedgerSession, Requeued
from callmill.ledger.memory import MemoryGauge, Role
from callmill.ledger.scripts import script
from callmill.limits import open_limiter
from callmill.producer import Batch, Client, Job
from callmill.simulator import SimulatorOptions, SimulatorProcess
from callmill.simulator.latency import parse_latency

WAIT_S = 30
JOBS = 600


@dataclass
class FullableRedis:
    """A server whose memory the test decides on."""

    url: str
    connection: redis.Redis

    def used_up_to(self, share: float) -> None:
        """Set maxmemory so that this share of it is in use now."""
        memory = self.connection.info("memory")
        # What waits for a slow disk does not count, and is soon gone.
        used = memory["used_memory"] - memory.get("mem_not_counted_for_evict", 0)
        self.connection.config_set("maxmemory", int(used / share))

    def with_room(self) -> None:
        """Take the bound away."""
        self.connection.config_set("maxmemory", 0)

    def full(self) -> None:
        """Let it refuse whatever could take memory."""
        self.connection.config_set("maxmemory", 1)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[RedisProcess]:
    """Run a server of the module's own."""
    process = RedisProcess(tmp_path_factory.mktemp("redis")).start()
    process.ready()
    yield process
    process.teardown()


@pytest.fixture
def memory(server) -> Iterator[FullableRedis]:
    """Return the server, empty and with room."""
    with redis.Redis.from_url(server.url) as connection:
        held = FullableRedis(server.url, connection)
        held.with_room()
        connection.flushall()
        connection.set("ballast", bytes(32 * 2**20))  # so that what connections need moves the share little
        yield held
        held.with_room()


@pytest.fixture
def client(memory, monkeypatch, tmp_path) -> Iterator[Client]:
    """Return a client that knows no API profile."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CALLMILL_APIS", raising=False)
    with Client(memory.url) as made:
        yield made


@contextlib.contextmanager
def submitting(client: Client, count: int = 10) -> Iterator[list[Batch]]:
    """Submit in a thread that is joined at the end; the batch is in the list once it is submitted."""
    done: list[Batch] = []
    thread = threading.Thread(target=lambda: done.append(client.submit(Job("GET", "/", api="a") for _ in range(count))))
    thread.start()
    yield done
    thread.join(WAIT_S)
    assert not thread.is_alive()


@pytest.mark.parametrize("how", ["watermark", "refused"])
def test_submit_waits_for_memory(memory, client, caplog, how):
    """Above the watermark, and where Redis refuses all the same, submit waits and says why; with room it goes on."""
    caplog.set_level(logging.WARNING)
    if how == "watermark":
        memory.used_up_to(0.9)
    else:
        memory.full()
        client.async_client()._settings = client.async_client()._settings.model_copy(update={"memory_watermark": 1.0})
    with submitting(client) as done:
        until(lambda: "submitting waits" in caplog.text, WAIT_S)
        assert memory.connection.zcard("callmill:batches") == 0
        assert not done
        memory.with_room()
    assert done[0].progress().total == 10
    assert ("wait from 85.0% on" in caplog.text) == (how == "watermark")


def test_flush_waits_in_the_midst_of_a_submission(memory, client, caplog):
    """A batch half submitted waits with what is written kept and status telling why; cancelling it ends the wait."""
    caplog.set_level(logging.WARNING)

    def jobs() -> Iterator[Job]:  # more than there is room for
        for n in itertools.count():
            if n >= 4500 and n % 500 == 0:  # again and again: some of what is in use may be about to be given back
                memory.used_up_to(0.99)
            yield Job("GET", "/", api="a", id=str(n))

    failed: list[Exception] = []

    def submit() -> None:
        try:
            client.submit(jobs(), batch_id="half")
        except Exception as error:  # noqa: BLE001 - handed over to the test
            failed.append(error)

    thread = threading.Thread(target=submit)
    thread.start()
    until(lambda: failed or "submitting waits" in caplog.text, WAIT_S)
    progress = client.batch("half").progress()
    assert progress.total >= 4000
    assert not progress.sealed
    assert client.batch("half").progress().total == progress.total
    assert "producers wait" in progress.limited_by
    client.batch("half").cancel()
    thread.join(WAIT_S)
    assert "takes no more jobs" in str(failed[0])


def test_marks_have_a_distance_and_do_not_flutter(memory):
    """Producers wait first, workers at half of what is left; either goes on a little below its mark only."""

    async def scenario() -> None:
        connection = connect(memory.url)

        async def waits(share: float) -> tuple[bool, bool]:
            memory.used_up_to(share)
            gauge._looked_s = float("-inf")
            return bool(await gauge.why_wait(Role.PRODUCER)), bool(await gauge.why_wait(Role.WORKER))

        try:
            gauge = MemoryGauge(LedgerSession(connection), 0.8)
            assert await waits(0.7) == (False, False)
            assert await waits(0.83) == (True, False)
            assert await waits(0.95) == (True, True)
            assert await waits(0.88) == (True, True)
            assert await waits(0.78) == (True, False)
            assert await waits(0.7) == (False, False)
        finally:
            await connection.aclose()

    asyncio.run(scenario())


def test_full_redis_refuses_outcomes_and_nothing_that_frees(memory):
    """Full, Redis refuses a bundle whole and takes it later; leases, give-ups, requeues, reads and control go on."""

    async def scenario() -> None:
        connection = connect(memory.url)
        session = LedgerSession(connection)
        batches, chunks = Batches(session), Chunks(session, worker="w", lease_ms=60_000)
        try:
            batch_id = await batches.create("", retention_ms=60_000)
            payload = encode_chunk(Chunk("api", 0, [WireJob("GET", "/")] * 2))
            await batches.add(batch_id, 0, [("api", payload)] * 3, park=False)
            refs = [ChunkRef(batch_id, number, "api") for number in range(3)]
            claims = [await chunks.claim(ref) for ref in refs]
            held, given_up, lost = (claim for claim in claims if isinstance(claim, Claim))
            bundle = Bundle(calls=2)
            for at in range(2):
                bundle.add(at, WireOutcome(at, None, 200, b"", {}, None, None, 1, 0, 1))
            await connection.zadd("callmill:due", {lost.ref.member: 1})
            memory.full()
            with pytest.raises(RedisFullError, match="memory is full"):
                await chunks.commit(held, bundle)
            (refused,) = await chunks.commit_all([(held, bundle, None)])
            assert isinstance(refused, RedisFullError)
            keys, arguments = chunks.renewal([held])
            assert await connection.register_script(script("renew"))(keys=keys, args=arguments) == [1]
            assert (await chunks.commit(given_up, Bundle(), Finish())).hint_wanted
            assert await chunks.requeue_due() == Requeued(put_back=[lost.ref])
            assert (await batches.record(batch_id)).recorded == 0
            await batches.release(batch_id, "0-1")
            assert await batches.seal(batch_id) == 6
            assert await batches.control(batch_id, "paused")
            assert await batches.control(batch_id, "run")
            memory.with_room()
            assert (await chunks.commit(held, bundle, Finish())).proceed
            record = await batches.record(batch_id)
            assert (record.recorded, record.calls, record.leased) == (2, 2, 0)
        finally:
            await connection.aclose()

    asyncio.run(scenario())


@pytest.mark.chaos
def test_limiter_lets_no_call_through_while_redis_is_full(memory):
    """A limiter whose Redis refuses for lack of memory grants nothing new and ends nothing; with room it goes on."""

    async def scenario() -> None:
        async with open_limiter(memory.url, "api", ["50/second", "5 concurrent"]) as limiter:
            for _ in range(3):
                limiter.settle(await limiter.acquire(), None)
            memory.full()
            granted = 0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.5):
                    while True:
                        limiter.settle(await limiter.acquire(), None)
                        granted += 1
            assert granted < 25  # slots that were reserved before, of 75 that there would have been
            memory.with_room()
            async with asyncio.timeout(WAIT_S):
                for _ in range(60):
                    limiter.settle(await limiter.acquire(), None)

    asyncio.run(scenario())


@dataclass
class Site:
    """A worker on the server, and its API."""

    worker: LocalWorker
    log: Path
    api: SimulatorProcess

    def calls(self) -> Counter[str]:
        """Return how often each job was called, as the API saw it."""
        self.api.stats()
        return Counter(json.loads(line)["idempotency_key"] for line in self.log.read_text().splitlines())


@pytest.fixture
def site(memory, tmp_path) -> Iterator[Site]:
    """Start the worker; its API takes a tenth of a second a call and 20 at a time: a batch lasts three seconds."""
    log = tmp_path / "calls.jsonl"
    with SimulatorProcess(SimulatorOptions(latency=parse_latency("100ms"), log=log, seed=1)) as api:
        apis = write_profiles(tmp_path / "apis.toml", {"api": [f'base_url = "{api.url}"', "max_connections = 20"]})
        settings = {"lease_s": 5, "calls_in_flight": 20}
        worker = LocalWorker(WorkerProcess(tmp_path, memory.url, apis, settings).start(), app)
        try:
            worker.ready()
            yield Site(worker, log, api)
        finally:
            worker.teardown()


@pytest.mark.chaos
@pytest.mark.parametrize("how", ["watermark", "refused"])
def test_worker_holds_while_redis_is_full(site, memory, client, how):
    """Near the end of Redis's memory, and behind it, a worker stops with a reason; with room each job is done once."""
    batch = client.submit(Job("POST", f"/{n}", api="api", id=str(n)) for n in range(JOBS))
    until(lambda: batch.progress().done >= 50, WAIT_S, "the batch runs")
    if how == "watermark":
        memory.used_up_to(0.96)
    else:
        memory.full()
    until(lambda: "holding: " in site.worker.logs(), WAIT_S, "the worker holds")
    until(lambda: "wait from 92.5% on" in batch.progress().limited_by, WAIT_S, "status says why")
    calls = until(lambda: (now := site.calls()) == site.calls() and now, WAIT_S, "calls in flight end")
    assert len(calls) < JOBS
    if how == "watermark":  # what was in flight is recorded
        until(lambda: batch.progress().done == len(site.calls()), WAIT_S, "everything that was called is recorded")
    memory.with_room()
    outcomes = list(batch.outcomes())
    assert sorted(int(outcome.id) for outcome in outcomes) == list(range(JOBS))
    assert all(outcome.ok for outcome in outcomes)
    assert set(site.calls().values()) == {1}
    assert "a part of the worker died" not in site.worker.logs()


def test_batch_that_nobody_reads_is_held_and_complete_when_it_is_read(site, client):
    """A worker stops at the bound of unread outcomes, status says what to do, and who reads and releases gets all."""
    batch = client.submit((Job("POST", f"/{n}", api="api", id=str(n)) for n in range(JOBS)), max_unread_mb=0.01)
    until(lambda: "its outcomes fill" in batch.progress().limited_by, WAIT_S, "the batch is full")
    until(lambda: batch.progress().done == len(site.calls()) < JOBS, WAIT_S, "what was in flight is recorded")
    assert "release" in batch.progress().limited_by
    outcomes = list(batch.outcomes(release=True))
    assert sorted(int(outcome.id) for outcome in outcomes) == list(range(JOBS))
    assert batch.progress().ended
    assert list(batch.outcomes()) == []
    assert set(site.calls().values()) == {1}
