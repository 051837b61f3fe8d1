"""What producers and reconcilers ask of the ledger, and what they are told, batch by batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from callmill.config.redis_connections import connect
from callmill.errors import BatchNotFoundError, BatchStateError, UnknownFormatError
from callmill.jobs.formats import FORMAT
from callmill.jobs.outcome import Outcome
from callmill.jobs.traffic import Priority, TrafficClass
from callmill.jobs.wire import Chunk, WireJob, WireOutcome, encode_chunk
from callmill.ledger import (
    Batches,
    BatchState,
    Bundle,
    ChunkRef,
    Chunks,
    Claim,
    Finish,
    LedgerSession,
    keys,
)
from callmill.ledger import batches as module
from callmill.ledger.failure_filter import FailureFilter
from callmill.ledger.keys import BatchKeys

PAYLOAD = encode_chunk(Chunk("api", 0, [WireJob("GET", "/")] * 2))
INDEXES = (keys.BATCHES, keys.OPEN, keys.DEADLINES, keys.ACTIVE)


class Ledger:
    """A ledger, a producer and a worker on it."""

    def __init__(self, redis_url: str) -> None:
        self.redis = connect(redis_url)
        session = LedgerSession(self.redis)
        self.batches = Batches(session)
        self.chunks = Chunks(session, worker="w")

    async def opened(self, chunks: int = 1, *, park: bool = False, **options: Any) -> str:
        """Open a batch of chunks of two jobs; return its id."""
        batch_id = await self.batches.create("", **{"retention_ms": 60_000, **options})
        if chunks:
            await self.batches.add(batch_id, 0, [("api", PAYLOAD)] * chunks, park=park)
        return batch_id

    async def sealed(self, chunks: int = 1, **options: Any) -> str:
        """Submit a batch; return its id."""
        batch_id = await self.opened(chunks, **options)
        await self.batches.seal(batch_id)
        return batch_id

    async def make_newer(self, batch_id: str) -> None:
        """Let the batch be one of a newer Callmill."""
        await self.redis.hset(BatchKeys(batch_id).meta, "format", FORMAT + 1)

    async def claim(self, batch_id: str, number: int = 0) -> Claim:
        """Claim what must be there to be claimed."""
        claim = await self.chunks.claim(ChunkRef(batch_id, number, "api"))
        assert isinstance(claim, Claim)
        return claim

    async def do(self, batch_id: str, number: int = 0, *, code: str | None = None) -> None:
        """Record a chunk, each job in a bundle of its own."""
        claim = await self.claim(batch_id, number)
        for at in (0, 1):
            outcome = WireOutcome(2 * number + at, None, 200, b"%d" % at, {}, code, code, 1, 0, 1000)
            await self.chunks.commit(claim, Bundle(outcomes=[(at, outcome)], calls=1), Finish() if at else None)

    async def read(self, batch_id: str, after: str = module.FIRST, **options: Any) -> list[Outcome]:
        """Read all outcomes."""
        return [outcome async for bundle in self.batches.outcomes(batch_id, after, **options) for outcome in bundle]


@pytest.fixture
def run(redis_url: str) -> Callable[[Callable[[Ledger], Coroutine[Any, Any, None]]], None]:
    """Run a scenario on an empty ledger."""

    def run_scenario(scenario: Callable[[Ledger], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            ledger = Ledger(redis_url)
            try:
                await scenario(ledger)
            finally:
                await ledger.redis.aclose()

        asyncio.run(main())

    return run_scenario


def test_a_batch_is_created_as_it_was_asked_for(run):
    """Name, class, bounds and deadline of a batch are those it was created with, and its id is not given out twice."""

    async def scenario(ledger: Ledger) -> None:
        traffic = TrafficClass(Priority.BULK, "t")
        batch_id = await ledger.batches.create(
            "nightly", retention_ms=60_000, batch_id="mine", traffic=traffic, max_unread_bytes=77, deadline_ms=9_999,
            own_lines=True,
        )  # fmt: skip
        record = await ledger.batches.record("mine")
        assert (batch_id, record.name, record.traffic, record.state) == (
            "mine",
            "nightly",
            traffic,
            BatchState.SUBMITTING,
        )
        assert (record.max_unread_bytes, record.deadline_ms, record.own_lines) == (77, 9_999, True)
        assert 0 <= await ledger.batches.now_ms() - record.created_ms < 10_000
        with pytest.raises(BatchStateError, match="already exists"):
            await ledger.batches.create("other", retention_ms=1, batch_id="mine")
        plain = await ledger.batches.record(await ledger.batches.create("", retention_ms=60_000))
        assert (plain.own_lines, plain.deadline_ms, plain.max_unread_bytes, plain.traffic) == (
            False,
            0,
            0,
            TrafficClass(),
        )
        assert await ledger.redis.zrange(keys.DEADLINES, 0, -1) == [b"mine"]

    run(scenario)


def test_a_batch_exists_until_it_is_deleted(run):
    """Whether a batch is there can be told of any format, and what is not there is said so by every question."""

    async def scenario(ledger: Ledger) -> None:
        batch_id = await ledger.opened()
        await ledger.make_newer(batch_id)
        assert await ledger.batches.exists(batch_id)
        assert not await ledger.batches.exists("other")
        for question in (
            ledger.batches.record("other"),
            ledger.batches.seal("other"),
            ledger.batches.control("other", "run"),
            ledger.batches.add("other", 0, [("api", PAYLOAD)], park=False),
            ledger.batches.retry_failed("other"),
        ):
            with pytest.raises(BatchNotFoundError, match="no batch 'other'"):
                await question
        with pytest.raises(UnknownFormatError):
            await ledger.batches.record(batch_id)

    run(scenario)


def test_chunks_are_added_in_order_and_once(run):
    """The same chunks twice count once; a gap means that Redis lost some, others that somebody else submits."""

    async def scenario(ledger: Ledger) -> None:
        batch_id = await ledger.opened(0)
        for _ in range(2):
            assert await ledger.batches.add(batch_id, 0, [("api", PAYLOAD)] * 2, park=False) == 4
        assert await ledger.batches.add(batch_id, 2, [("api", PAYLOAD)], park=False) == 6
        with pytest.raises(BatchStateError, match="Redis has 3 of the 9 chunks"):
            await ledger.batches.add(batch_id, 9, [("api", PAYLOAD)], park=False)
        with pytest.raises(BatchStateError, match="another producer"):
            await ledger.batches.add(batch_id, 1, [("api", PAYLOAD)] * 3, park=False)
        with pytest.raises(BatchStateError, match="Redis has 3 of the 4 chunks"):
            await ledger.batches.seal(batch_id, 4)
        assert [await ledger.batches.seal(batch_id, 3), await ledger.batches.seal(batch_id)] == [6, 6]
        with pytest.raises(BatchStateError, match="takes no more jobs"):
            await ledger.batches.add(batch_id, 3, [("api", PAYLOAD)], park=False)
        assert (await ledger.batches.record(batch_id)).chunks == 3

    run(scenario)


def test_parked_chunks_wait_until_they_are_unparked(run):
    """Chunks that are held back are queued on demand, in order, in their lines, and only after the seal."""

    async def scenario(ledger: Ledger) -> None:
        batch_id = await ledger.opened(3, park=True)
        assert await ledger.redis.zcard(keys.queued("api")) == 0
        await ledger.batches.seal(batch_id)
        assert await ledger.batches.resumed() == [batch_id]
        refs = [ChunkRef(batch_id, number, "api") for number in range(3)]
        assert await ledger.batches.unpark(batch_id) == refs
        assert sorted(await ledger.redis.zrange(keys.queued("api"), 0, -1)) == [ref.member.encode() for ref in refs]
        assert (await ledger.batches.unpark(batch_id), await ledger.batches.resumed()) == ([], [])

    run(scenario)


@pytest.mark.parametrize("name", ["ACTIVE", "DUE", "RESUMED", "OPEN", "DEADLINES"])
def test_anything_that_is_left_is_looked_after(run, name):
    """A ledger needs a reconciler as long as any of the indexes that it goes through has something."""

    async def scenario(ledger: Ledger) -> None:
        assert not await ledger.batches.any_to_look_after()
        key = getattr(keys, name)
        await (ledger.redis.sadd(key, "b") if name == "RESUMED" else ledger.redis.zadd(key, {"b": 1}))
        assert await ledger.batches.any_to_look_after()

    run(scenario)


def test_an_open_batch_is_left_when_its_producer_says_nothing(run):
    """A batch is left open when nothing was written for so long, and not while its producer says that it lives."""

    async def scenario(ledger: Ledger) -> None:
        quiet, alive, sealed = await ledger.opened(), await ledger.opened(), await ledger.sealed()
        assert await ledger.batches.left_open(60_000) == []
        now_ms = await ledger.batches.now_ms()
        await ledger.redis.zadd(keys.OPEN, {quiet: now_ms - 90_000, alive: now_ms - 90_000})
        assert sorted(await ledger.batches.left_open(60_000)) == sorted([quiet, alive])
        assert await ledger.batches.left_open(120_000) == []
        await ledger.batches.still_open(alive)
        await ledger.batches.still_open(sealed)
        assert await ledger.batches.left_open(60_000) == [quiet]
        assert await ledger.redis.zscore(keys.OPEN, sealed) is None

    run(scenario)


def test_a_batch_is_overdue_while_it_could_run(run):
    """Past its deadline a batch is overdue, unless it is held back, of a newer format, or not there any more."""

    async def scenario(ledger: Ledger) -> None:
        soon_ms = await ledger.batches.now_ms() + 3_600_000
        late = [await ledger.sealed(deadline_ms=1) for _ in range(6)]
        later = await ledger.sealed(deadline_ms=soon_ms)
        running, paused, full, ended, gone, newer = late
        await ledger.batches.control(paused, "paused")
        await ledger.redis.hset(BatchKeys(full).meta, "full", 1)
        await ledger.redis.hset(BatchKeys(ended).meta, "ended_ms", 1)
        await ledger.redis.unlink(BatchKeys(gone).meta)
        await ledger.make_newer(newer)
        for _ in range(2):
            assert await ledger.batches.overdue() == [running]
            left = await ledger.redis.zrange(keys.DEADLINES, 0, -1)
            assert sorted(left) == sorted(batch_id.encode() for batch_id in (running, paused, full, newer, later))

    run(scenario)


def test_unfinished_are_the_chunks_that_nobody_holds(run):
    """Chunks that are held, over, or unreadable are left out; the others are named with their line."""

    async def scenario(ledger: Ledger) -> None:
        batch_id = await ledger.sealed(6)
        batch = BatchKeys(batch_id)
        await ledger.claim(batch_id, 0)
        await ledger.do(batch_id, 1, code="http_500")
        await ledger.do(batch_id, 2)
        await ledger.redis.hset(batch.chunks, "3", "damaged")
        await ledger.redis.hdel(batch.chunks, "5")
        assert [ref async for ref in ledger.batches.unfinished(batch_id)] == [ChunkRef(batch_id, 4, "api")]

    run(scenario)


def test_what_people_say_is_counted_and_stops_when_a_batch_is_over(run):
    """Each word that steers a batch raises the number that workers look at; one that comes too late is told so."""

    async def scenario(ledger: Ledger) -> None:
        assert await ledger.batches.controls() == 0
        batch_id = await ledger.sealed()
        assert await ledger.batches.control(batch_id, "paused")
        assert await ledger.batches.control(batch_id, "cancelled", "its owner left")
        record = await ledger.batches.record(batch_id)
        assert (record.state, record.reason, await ledger.batches.controls()) == (
            BatchState.CANCELLED,
            "its owner left",
            2,
        )
        assert not await ledger.batches.control(batch_id, "run")
        with pytest.raises(BatchStateError, match="was cancelled"):
            await ledger.batches.retry_failed(batch_id)

    run(scenario)


def test_failed_jobs_are_queued_again_and_counted(run):
    """All failed jobs run again, or those that a condition names; chunks that nobody holds need a hint."""

    async def scenario(ledger: Ledger) -> None:
        batch_id = await ledger.sealed(3)
        await ledger.do(batch_id, 0, code="http_500")
        await ledger.do(batch_id, 1)
        await ledger.do(batch_id, 2, code="timeout")
        chosen = FailureFilter("code=timeout")
        assert await ledger.batches.retry_failed(batch_id, chosen) == (2, [ChunkRef(batch_id, 2, "api")])
        assert await ledger.batches.retry_failed(batch_id) == (2, [ChunkRef(batch_id, 0, "api")])
        assert await ledger.batches.retry_failed(batch_id) == (0, [])

    run(scenario)


def test_the_newest_batches_come_first_and_those_that_are_gone_are_forgotten(run):
    """Of the newest batches those of a newer format are left out, and whose retention is over is forgotten for good."""

    async def scenario(ledger: Ledger) -> None:
        ids = [await ledger.opened(0) for _ in range(5)]
        await ledger.redis.zadd(keys.BATCHES, {batch_id: at for at, batch_id in enumerate(ids)})
        await ledger.redis.unlink(BatchKeys(ids[3]).meta)
        await ledger.redis.hset(BatchKeys(ids[3]).superseded, "0", "left by an older worker")
        await ledger.make_newer(ids[2])
        assert [record.id for record in await ledger.batches.recent(4)] == [ids[4], ids[1]]
        assert await ledger.redis.exists(BatchKeys(ids[3]).superseded) == 0
        assert [record.id for record in await ledger.batches.recent(4)] == [ids[4], ids[1], ids[0]]
        assert await ledger.redis.zcard(keys.BATCHES) == 4

    run(scenario)


def test_of_a_deleted_batch_nothing_is_left(run):
    """Deleting takes every key and every mention of a batch, and its queued chunks; workers are told."""

    async def scenario(ledger: Ledger) -> None:
        kept = await ledger.sealed(deadline_ms=9_999)
        before = set(await ledger.redis.keys("*"))
        batch_id = await ledger.opened(2, deadline_ms=9_999)
        await ledger.redis.sadd(keys.RESUMED, batch_id)
        await ledger.redis.zadd(keys.ENDED, {batch_id: 1})
        await ledger.redis.zadd(keys.MOVING, {batch_id: 1})
        await ledger.batches.delete(batch_id, [ChunkRef(batch_id, number, "api") for number in range(2)])
        assert set(await ledger.redis.keys("*")) == before | {keys.CONTROLS.encode()}
        assert await ledger.batches.controls() == 1
        for index in INDEXES:
            assert await ledger.redis.zscore(index, batch_id) is None
        assert await ledger.redis.zrange(keys.queued("api"), 0, -1) == [f"{kept}/0/api".encode()]
        await ledger.make_newer(kept)
        with pytest.raises(UnknownFormatError):
            await ledger.batches.delete(kept)
        assert await ledger.batches.exists(kept)
        await ledger.batches.delete("never there")

    run(scenario)


def test_outcomes_are_released_while_they_are_read(run, monkeypatch):
    """A reader that releases drops what it was given once it asks for more, and everything before it waits."""
    monkeypatch.setattr(module, "_RELEASE_EVERY_S", -1.0)

    async def scenario(ledger: Ledger) -> None:
        batch_id = await ledger.sealed(3)
        for number in range(3):
            await ledger.do(batch_id, number)
        stream = BatchKeys(batch_id).outcomes
        left, read = [], []
        async for bundle in ledger.batches.outcomes(batch_id, release=True):
            read += [outcome.index for outcome in bundle]
            left.append(await ledger.redis.xlen(stream))
        assert (read, left) == (list(range(6)), [7, 7, 6, 5, 4, 3])
        assert await ledger.redis.xlen(stream) == 1
        assert await ledger.read(batch_id) == []

    run(scenario)


def test_a_reader_that_does_not_release_leaves_everything(run):
    """Whoever only reads takes nothing away, and can read again from any cursor."""

    async def scenario(ledger: Ledger) -> None:
        batch_id = await ledger.sealed(3)
        for number in range(3):
            await ledger.do(batch_id, number)
        read = await ledger.read(batch_id)
        assert [outcome.index for outcome in read] == list(range(6))
        entries = [entry_id.decode() for entry_id, _ in await ledger.redis.xrange(BatchKeys(batch_id).outcomes)]
        assert len(entries) == 7
        # Programs keep cursors over upgrades: the entry of the stream, and the place in it from 1.
        assert [outcome.cursor for outcome in read] == [f"{entry_id}/1" for entry_id in entries[:6]]
        for outcome in read:
            again = await ledger.read(batch_id, outcome.cursor)
            assert [later.index for later in again] == list(range(outcome.index + 1, 6))

    run(scenario)


def test_large_bundles_are_read_a_few_at_a_time(run, monkeypatch):
    """How many bundles are read ahead follows from how large those before were: a bound of bytes, one at least."""
    monkeypatch.setattr(module, "_BYTES_AT_ONCE", 1)

    async def scenario(ledger: Ledger) -> None:
        batch_id = await ledger.sealed(6)
        for number in range(6):
            await ledger.do(batch_id, number)
        counts: list[int] = []
        read = ledger.batches._read

        async def counting(batch_id: str, last: str, count: int) -> Any:
            counts.append(count)
            return await read(batch_id, last, count)

        monkeypatch.setattr(ledger.batches, "_read", counting)
        assert len(await ledger.read(batch_id)) == 12
        assert counts == [4] + [1] * 12  # of the four, one was enough
        counts.clear()
        monkeypatch.setattr(module, "_BYTES_AT_ONCE", 2**30)
        assert len(await ledger.read(batch_id)) == 12
        assert counts == [4, 64]

    run(scenario)


def test_the_rate_is_that_of_the_last_seconds(run):
    """Outcomes per second come from the whole seconds before this one."""

    async def scenario(ledger: Ledger) -> None:
        batch_id = await ledger.sealed()
        now_s = await ledger.batches.now_ms() // 1000
        await ledger.redis.hset(BatchKeys(batch_id).meta, "created_ms", (now_s - 100) * 1000)
        ring = {str((now_s - ago) % 64): f"{now_s - ago} 30" for ago in range(3, 8)}
        await ledger.redis.hset(BatchKeys(batch_id).rate, mapping=ring)
        assert await ledger.batches.rate_per_s(await ledger.batches.record(batch_id)) == 15.0

    run(scenario)
