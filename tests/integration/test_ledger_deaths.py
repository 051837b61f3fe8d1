"""What the ledger keeps of workers that died, and what becomes of chunks that cannot be run as they are."""

from __future__ import annotations

import asyncio
import os
import struct
import time

import pytest

from callmill.config.redis_connections import connect
from callmill.errors import CorruptBatchError, CorruptChunkError, StaleLeaseError
from callmill.jobs.bounds import MAX_CHUNK_BYTES, SMALL_CHUNK_BYTES
from callmill.jobs.line import Line
from callmill.jobs.wire import Chunk, WireJob, decode_outcomes, encode_chunk
from callmill.ledger import Batches, Bundle, ChunkRef, Chunks, Claim, Finish, LedgerSession, Requeued, Suspect, keys
from callmill.ledger.failure_filter import ALL, FailureFilter
from callmill.ledger.keys import BatchKeys
from callmill.workers.execution import Execution
from callmill.workers.newer_batches import NewerBatches

JOBS = 3
LINE = Line("api")


class Ledger:
    """One sealed batch of one chunk, and a worker's part that executes it without a lane."""

    def __init__(self, redis_url: str) -> None:
        self.redis = connect(redis_url)
        session = LedgerSession(self.redis)
        self.batches = Batches(session)
        self.chunks = Chunks(session, worker="w")
        self.newer = NewerBatches()
        self.execution = Execution(self.chunks, {}, None, None, {}, lease_s=15, newer=self.newer)

    async def begin(self) -> None:
        """Submit."""
        batch_id = await self.batches.create("", retention_ms=60_000)
        payload = encode_chunk(Chunk("api", 0, [WireJob("GET", "/")] * JOBS))
        await self.batches.add(batch_id, 0, [("api", payload)], park=False)
        await self.batches.seal(batch_id)
        self.ref, self.names = ChunkRef(batch_id, 0, "api"), BatchKeys(batch_id)

    async def claim(self) -> Claim:
        """Claim what must be there to be claimed."""
        claim = await self.chunks.claim(self.ref)
        assert isinstance(claim, Claim)
        return claim

    async def time_passes(self) -> None:
        """Let the lease, or the delay, be over."""
        await self.redis.zadd(keys.DUE, {self.ref.member: 0}, xx=True)

    async def die(self, *, noticed_by_reconciler: bool = True) -> None:
        """End the lease without a word."""
        await self.time_passes()
        if noticed_by_reconciler:
            assert await self.chunks.requeue_due() == Requeued(put_back=[self.ref])

    async def status(self) -> str:
        """Return the letter of the chunk's state."""
        return (await self.redis.hget(self.names.state, "0")).decode().split("|")[1]


@pytest.fixture
def run(redis_url):
    """Run a scenario on a ledger of its own."""

    def run_scenario(scenario) -> None:
        async def main() -> None:
            ledger = Ledger(redis_url)
            try:
                await ledger.begin()
                await scenario(ledger)
            finally:
                await ledger.redis.aclose()

        asyncio.run(main())

    return run_scenario


def test_deaths_in_a_row_are_counted_until_a_regular_end(run):
    """Each lease that ends without a word counts once, whoever notices; what a worker says at the end, stands."""

    async def scenario(ledger: Ledger) -> None:
        for deaths, by_reconciler in enumerate([True, False, True]):
            assert (await ledger.claim()).deaths == deaths
            await ledger.die(noticed_by_reconciler=by_reconciler)
        claim = await ledger.claim()
        assert (claim.deaths, claim.count, claim.suspect) == (3, JOBS, None)
        await ledger.chunks.commit(claim, Bundle(), Finish(deaths=claim.deaths))
        claim = await ledger.claim()
        assert claim.deaths == 3
        await ledger.chunks.commit(claim, Bundle(), Finish())
        assert (await ledger.claim()).deaths == 0

    run(scenario)


def test_a_death_counts_against_what_was_noted_under_its_fence(run):
    """A worker that dies before it noted anything, or after another note, adds nothing to the job noted before."""

    async def scenario(ledger: Ledger) -> None:
        claim = await ledger.claim()
        await ledger.chunks.note_alone(claim, 1)
        await ledger.die()
        stale, claim = claim, await ledger.claim()
        assert claim.suspect == Suspect(1, 1)
        with pytest.raises(StaleLeaseError):
            await ledger.chunks.note_alone(stale, 0)
        await ledger.die()
        claim = await ledger.claim()
        assert (claim.suspect, claim.deaths) == (Suspect(1, 1), 2)
        await ledger.chunks.note_alone(claim, 1)
        await ledger.die(noticed_by_reconciler=False)
        claim = await ledger.claim()
        assert claim.suspect == Suspect(1, 2)
        await ledger.chunks.note_alone(claim, None)
        await ledger.die()
        claim = await ledger.claim()
        assert claim.suspect == Suspect(None, 1)
        await ledger.chunks.commit(claim, Bundle(), Finish())
        assert await ledger.redis.exists(ledger.names.suspects) == 0

    run(scenario)


def test_states_of_older_and_younger_workers_are_read(run):
    """A state text without deaths is one of none; without any, none are written, so that older workers read it."""

    async def scenario(ledger: Ledger) -> None:
        await ledger.redis.hset(ledger.names.state, "0", f"7|Q||{JOBS}|0|0|5")
        claim = await ledger.claim()
        assert (claim.deaths, claim.claims) == (0, 5)
        assert (await ledger.redis.hget(ledger.names.state, "0")).count(b"|") == 6
        await ledger.die()
        assert (await ledger.redis.hget(ledger.names.state, "0")).endswith(b"|6|1")
        await ledger.redis.delete(ledger.names.state)  # what an older producer wrote
        assert (await ledger.claim()).count == JOBS

    run(scenario)


@pytest.mark.parametrize(
    "payload",
    [b"", b"garbage", struct.pack(">BI", 1, JOBS) + b"no zlib", struct.pack(">BI", 0, JOBS), None],
    ids=["empty", "garbage", "no zlib", "version 0", "lost"],
)
def test_jobs_of_a_corrupt_chunk_end(run, caplog, payload):
    """However a payload is damaged, each of its jobs fails with the reason, the batch ends, the log is loud."""

    async def scenario(ledger: Ledger) -> None:
        if payload is None:
            await ledger.redis.hdel(ledger.names.chunks, "0")
        else:
            await ledger.redis.hset(ledger.names.chunks, "0", payload)
        assert "3 failed" in await ledger.execution.execute(await ledger.claim(), LINE, time.monotonic())
        record = await ledger.batches.record(ledger.ref.batch_id)
        assert (record.ended, record.failed, record.leased) == (True, JOBS, 0)
        entries = await ledger.redis.xrange(ledger.names.outcomes)
        outcomes = decode_outcomes(entries[0][1][b"b"])
        assert {(outcome.index, outcome.error_code) for outcome in outcomes} == {(-1, "corrupt")}
        assert {outcome.id for outcome in outcomes} == {f"{ledger.ref.batch_id}/0/{n}" for n in range(JOBS)}
        assert [entry.levelname for entry in caplog.records if entry.name.endswith("execution")] == ["CRITICAL"]
        for where in (ALL, FailureFilter("code=corrupt")):
            assert await ledger.batches.retry_failed(ledger.ref.batch_id, where) == (0, [])

    run(scenario)


@pytest.mark.parametrize(
    ("key", "field", "value"), [("meta", "deadline_ms", "abc"), ("suspects", "0", "1|abc|2"), ("meta", "format", "abc")]
)
def test_numbers_of_a_batch_that_are_none_end_it(run, key, field, value):
    """Where something else stands for a number of a batch, its jobs fail as corrupt, or it is named as what it is."""

    async def scenario(ledger: Ledger) -> None:
        await ledger.redis.hset(getattr(ledger.names, key), field, value)
        if field == "format":
            with pytest.raises(CorruptBatchError, match="not what was written"):
                await ledger.claim()
            return
        assert "'abc'" in await ledger.execution.execute(await ledger.claim(), LINE, time.monotonic())
        record = await ledger.batches.record(ledger.ref.batch_id)
        assert (record.ended, record.failed, record.leased, record.deadline_ms) == (True, JOBS, 0, 0)
        entries = await ledger.redis.xrange(ledger.names.outcomes)
        assert {outcome.error_code for outcome in decode_outcomes(entries[0][1][b"b"])} == {"corrupt"}

    run(scenario)


NUMBERS = ["format", "total", "succeeded", "failed", "leased", "created_ms", "deadline_ms", "max_unread_bytes", "calls"]


@pytest.mark.parametrize("field", [*NUMBERS, "priority", "state"])
def test_a_batch_that_somebody_changed_holds_up_no_other(run, field):
    """Whatever stands for a number of a batch, chunks of others are put back; it is shown, and can be deleted."""

    async def scenario(ledger: Ledger) -> None:
        changed, names = ledger.ref, ledger.names
        await ledger.claim()
        await ledger.begin()
        await ledger.claim()
        await ledger.redis.hset(*((names.state, "0") if field == "state" else (names.meta, field)), "abc")
        await ledger.redis.zadd(keys.DUE, {changed.member: 0, ledger.ref.member: 1}, xx=True)
        assert ledger.ref in (await ledger.chunks.requeue_due()).put_back
        assert (await ledger.batches.record(changed.batch_id)).id == changed.batch_id
        await ledger.batches.delete(changed.batch_id, [changed])
        assert not await ledger.redis.exists(names.meta)

    run(scenario)


def test_a_chunk_of_a_newer_format_waits_for_a_newer_worker(run):
    """What only a newer Callmill can read goes back unharmed for seconds, and the worker's status names its batch."""

    async def scenario(ledger: Ledger) -> None:
        claim = await ledger.claim()
        await ledger.chunks.commit(claim, Bundle(), Finish(attempts={1: 2}))
        payload = struct.pack(">BI", 2, JOBS) + b"of the future"
        await ledger.redis.hset(ledger.names.chunks, "0", payload)
        assert "upgrade" in await ledger.execution.execute(await ledger.claim(), LINE, time.monotonic())
        assert ledger.newer.lately == [ledger.ref.batch_id]
        assert await ledger.status() == "W"
        await ledger.time_passes()
        claim = await ledger.claim()
        assert (claim.payload, claim.attempts, claim.deaths) == (payload, {1: 2}, 0)

    run(scenario)


def test_a_bug_gives_the_chunk_back(run, caplog):
    """An error that nobody expected leaves no lease behind: the chunk goes back as it was, for later."""

    async def scenario(ledger: Ledger) -> None:
        await ledger.claim()
        await ledger.die()
        assert "bug" in await ledger.execution.execute(await ledger.claim(), LINE, time.monotonic())  # there is no lane
        assert await ledger.status() == "W"
        assert (await ledger.batches.record(ledger.ref.batch_id)).leased == 0
        assert "KeyError" in caplog.text
        await ledger.time_passes()
        assert (await ledger.claim()).deaths == 1

    run(scenario)


def test_a_corrupt_remainder_costs_attempts_and_not_the_chunk(run):
    """A chunk whose note on attempts cannot be read is claimed as if none had been made."""

    async def scenario(ledger: Ledger) -> None:
        await ledger.redis.hset(ledger.names.rest, "0", b"\xc1")
        assert (await ledger.claim()).attempts == {}

    run(scenario)


@pytest.mark.parametrize("payload", [struct.pack(">BI", 1, 50_000_000) + b"1234567", b"", b"\x01\x00\x00"])
def test_a_payload_that_is_no_chunk_is_not_added(run, payload):
    """A payload that claims millions of jobs, or says nothing, is refused with what came along; nothing is added."""

    async def scenario(ledger: Ledger) -> None:
        batch_id = await ledger.batches.create("", retention_ms=60_000)
        good = encode_chunk(Chunk("api", 0, [WireJob("GET", "/")]))
        with pytest.raises(CorruptChunkError, match="no chunk of at most 4,096 jobs"):
            await ledger.batches.add(batch_id, 0, [("api", good), ("api", payload)], park=False)
        assert (await ledger.batches.record(batch_id)).total == 0
        assert await ledger.redis.hlen(BatchKeys(batch_id).chunks) == 0
        assert await ledger.batches.add(batch_id, 0, [("api", good)], park=False) == 1

    run(scenario)


@pytest.mark.parametrize("with_state", [True, False])
def test_a_claim_of_millions_of_jobs_fails_as_one(run, with_state):
    """What was written past all checks and claims 50 million jobs ends its batch with one failed job, at once."""

    async def scenario(ledger: Ledger) -> None:
        claims = 50_000_000
        await ledger.redis.hset(ledger.names.chunks, "0", struct.pack(">BI", 1, claims) + b"1234567")
        if with_state:
            await ledger.redis.hset(ledger.names.state, "0", f"0|Q||{claims}|0|0|0")
            await ledger.redis.hset(ledger.names.meta, "total", claims)
        else:
            await ledger.redis.hdel(ledger.names.state, "0")
            await ledger.redis.hset(ledger.names.meta, "total", 1)
        claim = await ledger.claim()
        assert claim.count == 1
        assert "1 failed" in await ledger.execution.execute(claim, LINE, time.monotonic())
        record = await ledger.batches.record(ledger.ref.batch_id)
        assert (record.ended, record.total, record.failed) == (True, 1, 1)

    run(scenario)


def test_a_large_payload_comes_when_it_is_asked_for(run):
    """A claim brings a small payload along; a large one is read by itself, and one beyond all bounds never."""

    async def scenario(ledger: Ledger) -> None:
        large = encode_chunk(Chunk("api", 0, [WireJob("POST", "/", body=os.urandom(2**20))] * JOBS))
        assert len(large) > SMALL_CHUNK_BYTES
        await ledger.redis.hset(ledger.names.chunks, "0", large)
        claim = await ledger.claim()
        assert (claim.payload, claim.size_bytes) == (b"", len(large))
        assert await ledger.chunks.payload(claim) == large
        await ledger.chunks.release(claim, 0)
        await ledger.redis.hset(ledger.names.chunks, "0", large + bytes(MAX_CHUNK_BYTES))
        claim = await ledger.claim()
        read = ledger.chunks.payload
        ledger.chunks.payload = None  # type: ignore[assignment, method-assign] # to call it would fail
        assert "at most 20,971,520 are read" in await ledger.execution.execute(claim, LINE, time.monotonic())
        ledger.chunks.payload = read  # type: ignore[method-assign]

    run(scenario)
