"""Submitting jobs: all or nothing, in bounded memory, from wherever a program runs."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from typing import Self

import pytest
import redis

from callmill.config.celery import lane_queue_key
from callmill.errors import (
    BatchNotFoundError,
    BatchStateError,
    ConfigurationError,
    DuplicateIdError,
    JobError,
    ServerNotFoundError,
    UnknownApiError,
    WaitTimeoutError,
)
from callmill.jobs.wire import Chunk, WireOutcome, decode_chunk
from callmill.ledger import Bundle, ChunkRef, Chunks, Claim, Finish, LedgerSession
from callmill.ledger.keys import CONTROLS, PREFIX, BatchKeys, queued
from callmill.producer import AsyncClient, Batch, Client, Job


@pytest.fixture
def raw(redis_url) -> Iterator[redis.Redis]:
    """A plain connection, to look at what is there."""
    with redis.Redis.from_url(redis_url) as connection:
        yield connection


def jobs(count: int, api: str = "a") -> Iterator[Job]:
    """Yield jobs with ids."""
    return (Job("POST", f"/{n}", api=api, id=f"row-{n}", json={"n": n}) for n in range(count))


def written(raw: redis.Redis, batch_id: str) -> list[Chunk]:
    """Return the chunks of a batch, in order."""
    payloads = raw.hgetall(BatchKeys(batch_id).chunks)
    return [decode_chunk(payloads[number]) for number in sorted(payloads, key=int)]


def indexes(raw: redis.Redis, batch_id: str) -> list[int]:
    """Return every position that the chunks of a batch carry, sorted."""
    return sorted(chunk.index(at) for chunk in written(raw, batch_id) for at in range(len(chunk.jobs)))


def test_every_job_is_written_once(client, raw):
    """The chunks of a batch carry each of its jobs once, in order, and each chunk has its hint."""
    batch = client.submit(jobs(12_345), name="numbers")
    assert indexes(raw, batch.id) == list(range(12_345))
    chunks = written(raw, batch.id)
    assert [job.id for chunk in chunks for job in chunk.jobs] == [f"row-{n}" for n in range(12_345)]
    assert raw.zcard(queued("a")) == raw.llen(lane_queue_key("a")) == len(chunks)
    progress = batch.progress()
    assert (progress.total, progress.sealed, progress.done, progress.name) == (12_345, True, 0, "numbers")
    assert progress.limited_by.startswith("no worker serves a")


def test_one_batch_of_several_apis(client, raw):
    """Jobs of several APIs share a batch; each chunk has one API, and every job keeps its position."""
    batch = client.submit(Job("GET", f"/{n}", api="abc"[n % 3]) for n in range(1000))
    chunks = written(raw, batch.id)
    assert {chunk.api for chunk in chunks} == set("abc")
    for chunk in chunks:
        assert all("abc"[chunk.index(at) % 3] == chunk.api for at in range(len(chunk.jobs)))
        assert all(job.url == f"/{chunk.index(at)}" for at, job in enumerate(chunk.jobs))
    assert indexes(raw, batch.id) == list(range(1000))


def test_empty_batch_is_over_at_once(client):
    """A batch without jobs ends with its seal."""
    progress = client.submit([]).wait(1)
    assert (progress.total, progress.state) == (0, "done")


@pytest.mark.parametrize("position", [0, 1, 3_999, 4_000, 9_999])
def test_wrong_job_leaves_nothing(client, raw, position):
    """One wrong job, wherever it is, and nothing of the batch is kept or run."""
    given = [*jobs(position), Job("GET", "nowhere", api="a"), *jobs(10)]
    with pytest.raises(JobError) as raised:
        client.submit(given)
    assert (raised.value.position, raised.value.field) == (position, "url")
    kept = {CONTROLS.encode()}  # one number, of no batch
    assert {key for key in raw.keys("*") if not key.startswith(b"_kombu")} <= kept


@pytest.mark.parametrize("submit", ["call", "at once", "interrupt", "configuration"])
def test_failed_start_leaves_nothing(client, raw, submit, tmp_path):
    """A submission that fails before its first job is written leaves no batch, whatever it was that failed."""

    def interrupted() -> Iterator[Job]:
        yield from jobs(3)
        raise KeyboardInterrupt

    if submit == "call":
        with pytest.raises(JobError):
            client.call(Job("GET", "nowhere", api="a"))
    elif submit == "at once":
        with pytest.raises(JobError):
            client.submit([*jobs(3_999), Job("GET", "nowhere", api="a")], start="at once")
    elif submit == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            client.submit(interrupted(), start="at once", batch_id="mine")
    else:
        (tmp_path / "apis.toml").write_text("[apis.a]\n", encoding="utf-8")
        with pytest.raises(ConfigurationError, match="base_url"):
            client.submit(jobs(3))
    assert raw.keys("*") == []


def test_id_of_a_batch_is_taken_once(client):
    """A second batch of one id is refused before its jobs are asked for, and the first one stays as it is."""
    first = client.submit(jobs(3), batch_id="mine")
    with pytest.raises(BatchStateError, match="'mine' already"):
        client.submit(iter(lambda: pytest.fail("asked for"), None), batch_id="mine")
    assert first.progress().total == 3


def test_duplicate_far_away_is_found(client):
    """Two jobs with one id are found although thousands lie between them."""
    with pytest.raises(DuplicateIdError, match="row-17") as raised:
        client.submit([*jobs(9_000), Job("GET", "/x", api="a", id="row-17")])
    assert raised.value.position == 9_000


def test_error_of_the_iterable_leaves_nothing(client, raw):
    """An exception in the caller's own generator comes through unchanged, and nothing is kept."""

    def broken() -> Iterator[Job]:
        yield from jobs(5_000)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        client.submit(broken())
    assert raw.keys(f"{PREFIX}b:*") == []


def test_started_jobs_stay(client, raw):
    """With start="at once" what was written before a mistake stays, and the batch stays open."""
    with pytest.raises(JobError):
        client.submit([*jobs(4_000), Job("GET", "nowhere", api="a")], start="at once")
    (progress,) = client.batches()
    assert (progress.total, progress.state) == (4_000, "submitting")
    assert raw.zcard(queued("a")) > 0


def test_unknown_api_of_announced_ones(client, raw):
    """Once workers have announced their APIs, a job of another one is refused with the nearest name."""
    raw.hset(f"{PREFIX}apis", "openai", '{"name":"openai","base_url":"https://api.example.com"}')
    with pytest.raises(UnknownApiError, match="did you mean 'openai'"):
        client.submit([Job("GET", "/x", api="opnai")])
    assert client.submit([Job("GET", "/x", api="openai")]).progress().total == 1


def test_memory_does_not_grow_with_the_batch(client):
    """Two hundred thousand jobs from a generator need no more than some megabytes, ids included."""
    client.submit(jobs(5_000))
    tracemalloc.start()
    try:
        client.submit(Job("GET", "/x", api="a") for _ in range(20_000))
        _, small = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        client.submit(Job("GET", "/x", api="a") for _ in range(200_000))
        _, large = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert large < small * 1.5 + 1_000_000


class Drain:
    """A worker without calls: it claims whatever is queued and records it, at most ``per_round`` chunks a round."""

    def __init__(self, client: Client, api: str = "a") -> None:
        self._client, self._api = client, api
        self.most_pending = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _run(self) -> None:
        async with AsyncClient(self._client.async_client()._redis_url) as client:
            connection = client.connection()
            chunks = Chunks(LedgerSession(connection.redis), worker="drain")
            while not self._stop.is_set():
                for record in await connection.batches.recent():
                    self.most_pending = max(self.most_pending, record.total - record.recorded)
                members = await connection.redis.zrange(queued(self._api), 0, 0)
                for member in members:
                    await self._do(chunks, ChunkRef.parse(member.decode()))
                await asyncio.sleep(0.001)

    @staticmethod
    async def _do(chunks: Chunks, ref: ChunkRef) -> None:
        claim = await chunks.claim(ref)
        if isinstance(claim, Claim):
            chunk = decode_chunk(claim.payload)
            outcomes = [
                (at, WireOutcome(chunk.index(at), job.id, 200, job.body or b"", {}, None, None, 1, 0, 1))
                for at, job in enumerate(chunk.jobs)
            ]
            await chunks.commit(claim, Bundle(outcomes=outcomes), Finish())


def complete(batch: Batch, count: int) -> None:
    """Every job of the batch has one outcome."""
    assert batch.wait(20).ended
    assert sorted(outcome.index for outcome in batch.outcomes()) == list(range(count))


@pytest.mark.parametrize("max_pending", [1, 50, 500])
def test_max_pending_bounds_what_waits(client, max_pending):
    """No more jobs than max_pending are ever written and not recorded, and all of them are done in the end."""
    count = max_pending * 6
    with Drain(client) as drain:
        complete(client.submit(jobs(count), max_pending=max_pending), count)
    assert 0 < drain.most_pending <= max_pending


def test_wait_that_takes_too_long(client):
    """A wait that is over before its batch says so, and the batch goes on."""
    batch = client.submit(jobs(1))
    with pytest.raises(WaitTimeoutError, match="goes on"):
        batch.wait(0.05)
    assert isinstance(WaitTimeoutError(), TimeoutError)


def test_attach_and_forget(client):
    """A batch is found again by its id, listed, deleted, and then not found any more."""
    batch = client.submit(jobs(3), name="three")
    again = client.batch(batch.id)
    assert (again.id, again.name) == (batch.id, "three")
    assert [progress.id for progress in client.batches()] == [batch.id]
    again.delete()
    for use in (lambda: client.batch(batch.id), batch.progress, batch.pause, batch.retry_failed, lambda: batch.wait(1)):
        with pytest.raises(BatchNotFoundError, match=batch.id):
            use()
    assert client.batches() == []


def test_going_on_with_an_open_batch(client, raw):
    """A batch left open is gone on with behind what is written; a sealed one is not."""
    with pytest.raises(JobError):
        client.submit([*jobs(4_000), Job("GET", "nowhere", api="a")], start="at once")
    (progress,) = client.batches()

    async def go_on() -> None:
        async with AsyncClient(client.async_client()._redis_url) as other:
            submission = await other.resume_submission(progress.id, start="at once")
            submission.add(Job("GET", "/late", api="a"))
            await submission.seal()
            with pytest.raises(BatchStateError):
                await other.resume_submission(progress.id)

    asyncio.run(go_on())
    assert indexes(raw, progress.id) == list(range(4_001))


def test_threads_share_a_client(client, raw):
    """Several threads submit over one client at the same time; no batch gets a job of another."""
    batches: dict[int, Batch] = {}

    def submit(size: int) -> None:
        batches[size] = client.submit(jobs(size))

    threads = [threading.Thread(target=submit, args=(size,)) for size in (100, 700, 4_500, 5_000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {size: len(indexes(raw, batch.id)) for size, batch in batches.items()} == {
        size: size for size in (100, 700, 4_500, 5_000)
    }


def test_inside_a_running_event_loop(client):
    """The synchronous client works where a loop already runs, as in a notebook."""

    async def cell() -> int:
        batch = client.submit(jobs(10))
        return batch.progress().total

    assert asyncio.run(cell()) == 10


def test_async_client(redis_url, client):
    """The asynchronous client does the same, takes asynchronous iterables, and follows outcomes as they come."""

    async def source() -> AsyncIterator[Job]:
        for job in jobs(500):
            await asyncio.sleep(0)
            yield job

    async def main() -> None:
        async with AsyncClient(redis_url) as own:
            batch = await own.submit(source(), name="async")
            seen = [outcome.id async for outcome in batch.outcomes()]
            assert sorted(seen) == sorted(f"row-{n}" for n in range(500))
            assert (await batch.wait(5)).succeeded == 500

    with Drain(client):
        asyncio.run(main())


def test_client_on_one_loop_after_another(redis_url, tmp_path, monkeypatch):
    """One AsyncClient serves one event loop after another, as asyncio.run() makes them."""
    monkeypatch.chdir(tmp_path)
    own = AsyncClient(redis_url)

    async def submit() -> int:
        batch = await own.submit(jobs(5))
        total = (await batch.progress()).total
        await own.aclose()
        return total

    assert [asyncio.run(submit()) for _ in range(2)] == [5, 5]


TASK = """
from celery import Celery
from callmill.producer import Client, Job

app = Celery("theirs", broker="memory://", backend="cache+memory://")
app.conf.task_always_eager = True

@app.task
def submit():
    with Client({url!r}) as client:
        return client.submit(Job("GET", f"/{{n}}", api="a") for n in range(50)).progress().total

print(submit.delay().get(), app.conf.broker_url)
"""


def test_inside_a_task_of_another_celery_app(redis_url, tmp_path):
    """A task of somebody else's Celery app submits; neither app's settings reach the other."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CALLMILL_")}
    done = subprocess.run(
        [sys.executable, "-c", TASK.format(url=redis_url)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**environment, "CELERY_BROKER_URL": "memory://"},
        timeout=30,
        check=True,
    )
    assert done.stdout.split() == ["50", "memory://"]


def test_no_server_is_said_at_once(tmp_path, monkeypatch):
    """Without any Redis, making a client says both remedies."""
    monkeypatch.delenv("CALLMILL_REDIS_URL", raising=False)
    monkeypatch.setenv("CALLMILL_STATE_DIR", str(tmp_path))
    with pytest.raises(ServerNotFoundError, match=r"CALLMILL_REDIS_URL.*callmill up"):
        Client()


def test_redis_away_while_submitting(celery_broker, tmp_path, monkeypatch):
    """Redis goes away for two seconds in the middle of a submission: it goes on, nothing is lost or doubled."""
    monkeypatch.chdir(tmp_path)
    outage: list[threading.Timer] = []

    def come_back() -> None:
        celery_broker.container.start().ready()

    def interrupted() -> Iterator[Job]:
        for n, job in enumerate(jobs(20_000)):
            if n == 9_000:
                celery_broker.kill()
                outage.append(threading.Timer(2, come_back))
                outage[0].start()
            yield job

    with Client(celery_broker.url) as client, redis.Redis.from_url(celery_broker.url) as raw:
        began_s = time.monotonic()
        batch = client.submit(interrupted())
        outage[0].join()
        assert time.monotonic() - began_s >= 2
        assert batch.progress().total == 20_000
        assert indexes(raw, batch.id) == list(range(20_000))
        assert raw.zcard(queued("a")) == len(written(raw, batch.id))


def test_interrupt_while_waiting(redis_url, client):
    """Ctrl-C during a wait ends the program at once, and the batch goes on."""
    batch = client.submit(jobs(1))
    program = f"""
import signal
from callmill.producer import Client
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may have it ignored
batch = Client({redis_url!r}).batch({batch.id!r})
print("waiting", flush=True)
batch.wait()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"waiting\n"
        child.send_signal(2)
        _, errors = child.communicate(timeout=10)
    assert b"KeyboardInterrupt" in errors
    assert batch.progress().state == "running"
