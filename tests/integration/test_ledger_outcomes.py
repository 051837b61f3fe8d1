"""Reading a batch's outcomes: from anywhere, while they are written, by anybody."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from callmill.config.redis_connections import connect
from callmill.errors import BatchNotFoundError, UsageError
from callmill.jobs.wire import Chunk, WireJob, WireOutcome, encode_chunk
from callmill.ledger import FIRST, Batches, Bundle, ChunkRef, Chunks, Claim, Finish, LedgerSession
from callmill.ledger.failure_filter import FailureFilter
from callmill.ledger.keys import BatchKeys

BUNDLES = (3, 1, 7, 2)
TOTAL = sum(BUNDLES)


class Ledger:
    """A ledger with one batch of one chunk, held by one worker."""

    def __init__(self, redis_url: str) -> None:
        self.redis = connect(redis_url)
        session = LedgerSession(self.redis)
        self.batches = Batches(session)
        self.chunks = Chunks(session, worker="w")

    async def begin(self, jobs: int = TOTAL, *, sealed: bool = True) -> Claim:
        """Submit the batch and claim its chunk."""
        batch_id = await self.batches.create("", retention_ms=60_000)
        payload = encode_chunk(Chunk("api", 0, [WireJob("GET", "/")] * jobs))
        await self.batches.add(batch_id, 0, [("api", payload)], park=False)
        if sealed:
            await self.batches.seal(batch_id)
        claim = await self.chunks.claim(ChunkRef(batch_id, 0, "api"))
        assert isinstance(claim, Claim)
        return claim

    async def record(self, claim: Claim, first: int, count: int, finish: Finish | None = None) -> None:
        """Record some jobs in one bundle."""
        outcomes = [
            (at, WireOutcome(at, None, 200, b"%d" % at, {}, None, None, 1, 0, 1000))
            for at in range(first, first + count)
        ]
        await self.chunks.commit(claim, Bundle(outcomes=outcomes), finish)

    async def record_all(self, claim: Claim) -> None:
        """Record every job, in several bundles."""
        first = 0
        for count in BUNDLES:
            await self.record(claim, first, count, Finish() if first + count == TOTAL else None)
            first += count

    async def read(self, claim: Claim, after: str = FIRST) -> list:
        """Read everything after a cursor."""
        return [outcome async for bundle in self.batches.outcomes(claim.ref.batch_id, after) for outcome in bundle]


@asynccontextmanager
async def opened(redis_url: str):
    """Open a ledger for one test."""
    ledger = Ledger(redis_url)
    try:
        yield ledger
    finally:
        await ledger.redis.aclose()


def indexes(outcomes) -> list[int]:
    """Return the positions of outcomes."""
    return [outcome.index for outcome in outcomes]


def test_every_cursor_gives_the_rest(redis_url):
    """Reading on after any outcome, at the end of a bundle or inside one, gives exactly the outcomes after it."""

    async def scenario() -> None:
        async with opened(redis_url) as ledger:
            claim = await ledger.begin()
            await ledger.record_all(claim)
            everything = await ledger.read(claim)
            assert indexes(everything) == list(range(TOTAL))
            assert [outcome.body for outcome in everything] == [b"%d" % at for at in range(TOTAL)]
            assert {outcome.id for outcome in everything} == {f"{claim.ref.batch_id}-{at}" for at in range(TOTAL)}
            for outcome in everything:
                assert indexes(await ledger.read(claim, outcome.cursor)) == list(range(outcome.index + 1, TOTAL))

    asyncio.run(scenario())


def test_release_drops_what_was_read(redis_url):
    """Outcomes up to a cursor are dropped from Redis bundle by bundle, and reading on after it is as before."""

    async def scenario() -> None:
        async with opened(redis_url) as ledger:
            claim = await ledger.begin()
            await ledger.record_all(claim)
            everything = await ledger.read(claim)
            stream = BatchKeys(claim.ref.batch_id).outcomes
            for outcome in everything:
                await ledger.batches.release(claim.ref.batch_id, outcome.cursor)
                assert indexes(await ledger.read(claim, outcome.cursor)) == list(range(outcome.index + 1, TOTAL))
            assert await ledger.redis.xlen(stream) == 2  # the last bundle and the end
            assert indexes(await ledger.read(claim)) == [TOTAL - 2, TOTAL - 1]

    asyncio.run(scenario())


def test_readers_follow_the_writer(redis_url):
    """Two readers get every outcome once, in order, as it is recorded, and stop at the end without a poll."""

    async def scenario() -> None:
        async with opened(redis_url) as ledger:
            claim = await ledger.begin()
            got: list[list[int]] = [[], []]
            arrived = asyncio.Event()

            async def read(at: int) -> None:
                async for bundle in ledger.batches.outcomes(claim.ref.batch_id):
                    got[at] += indexes(bundle)
                    arrived.set()

            readers = [asyncio.create_task(read(at)) for at in range(2)]
            first = 0
            for count in BUNDLES:
                await ledger.record(claim, first, count, Finish() if first + count == TOTAL else None)
                first += count
                while min(map(len, got)) < first:
                    arrived.clear()
                    await asyncio.wait_for(arrived.wait(), 5)
            await asyncio.wait_for(asyncio.gather(*readers), 1.5)  # below the 2 s that a read blocks
            assert got == [list(range(TOTAL))] * 2

    asyncio.run(scenario())


def test_reader_of_an_empty_batch_stops(redis_url):
    """A batch without jobs is over once it is sealed, and has no outcomes."""

    async def scenario() -> None:
        async with opened(redis_url) as ledger:
            batch_id = await ledger.batches.create("", retention_ms=60_000)
            await ledger.batches.seal(batch_id)
            assert (await ledger.batches.record(batch_id)).ended
            assert [bundle async for bundle in ledger.batches.outcomes(batch_id)] == []

    asyncio.run(scenario())


def test_reader_of_a_cancelled_batch_stops(redis_url):
    """A reader of a cancelled batch gets what was in flight and stops when the last lease is back."""

    async def scenario() -> None:
        async with opened(redis_url) as ledger:
            claim = await ledger.begin(sealed=False)
            assert await ledger.batches.control(claim.ref.batch_id, "cancelled")
            await ledger.record(claim, 0, 2)
            assert not (await ledger.batches.record(claim.ref.batch_id)).ended
            await ledger.record(claim, 2, 2, Finish())
            assert indexes(await ledger.read(claim)) == [0, 1, 2, 3]

    asyncio.run(scenario())


def test_reader_of_a_deleted_batch_is_told(redis_url):
    """A batch deleted while it is read ends the reading with an error, not with silence."""

    async def scenario() -> None:
        async with opened(redis_url) as ledger:
            claim = await ledger.begin()
            await ledger.record(claim, 0, 3)
            reading = ledger.batches.outcomes(claim.ref.batch_id)
            assert len(await anext(reading)) == 3
            await ledger.batches.delete(claim.ref.batch_id)
            with pytest.raises(BatchNotFoundError, match=claim.ref.batch_id):
                await anext(reading)

    asyncio.run(scenario())


def test_newest_outcome_counts(redis_url):
    """Once failed jobs ran again, a reader gets their new outcomes only; one that knew the old gets the new later."""

    async def scenario() -> None:
        async with opened(redis_url) as ledger:
            claim = await ledger.begin(9)
            failed = [(at, WireOutcome(at, None, 500, b"", {}, "http_500", "", 1, 0, 1)) for at in (6, 7, 8)]
            await ledger.chunks.commit(claim, Bundle(outcomes=failed))
            await ledger.record(claim, 0, 6, Finish())
            assert (await ledger.batches.record(claim.ref.batch_id)).ended
            assert await ledger.redis.pttl(BatchKeys(claim.ref.batch_id).meta) > 0
            known = await ledger.read(claim)
            assert indexes(known) == [6, 7, 8, *range(6)]
            assert await ledger.batches.retry_failed(claim.ref.batch_id) == (3, [claim.ref])
            assert await ledger.redis.pttl(BatchKeys(claim.ref.batch_id).superseded) == -1
            again = await ledger.chunks.claim(claim.ref)
            assert isinstance(again, Claim)
            assert again.recorded == frozenset(range(6))
            await ledger.chunks.commit(again, Bundle(outcomes=failed[:1]))
            await ledger.record(again, 7, 2, Finish())
            read = await ledger.read(claim)
            assert indexes(read) == [*range(6), 6, 7, 8]
            assert [outcome.ok for outcome in read] == [True] * 6 + [False, True, True]
            assert await ledger.read(claim, known[-1].cursor) == read[6:]
            assert await ledger.read(claim, known[0].cursor) == read
            record = await ledger.batches.record(claim.ref.batch_id)
            assert (record.succeeded, record.failed, record.ended) == (8, 1, True)
            assert await ledger.redis.pttl(BatchKeys(claim.ref.batch_id).superseded) > 0

    asyncio.run(scenario())


def test_any_jobs_may_be_superseded_again_and_again(redis_url):
    """Whichever jobs of many run again, one by one or all at once, and however often, each has its newest outcome."""
    count = 2500

    async def scenario() -> None:
        async with opened(redis_url) as ledger:
            claim = await ledger.begin(count)
            times = [0] * count

            async def fail_rest(claim: Claim) -> None:
                outcomes = []
                for at in range(count):
                    if at not in claim.recorded:
                        times[at] += 1
                        body = b"%d" % times[at]
                        outcomes.append((at, WireOutcome(at, f"row-{at}", 500, body, {}, "http_500", "", 1, 0, 1)))
                for first in range(0, len(outcomes), 600):
                    await ledger.chunks.commit(claim, Bundle(outcomes=outcomes[first : first + 600]))
                await ledger.chunks.commit(claim, Bundle(), Finish())

            await fail_rest(claim)
            for conditions in (["id=row-1024", "id=row-0"], ["id=row-7", "id=row-1024"], [""], ["id=row-2499"], [""]):
                for where in conditions:
                    assert (await ledger.batches.retry_failed(claim.ref.batch_id, FailureFilter(where)))[0]
                again = await ledger.chunks.claim(claim.ref)
                assert isinstance(again, Claim)
                await fail_rest(again)
                read = await ledger.read(claim)
                assert sorted(indexes(read)) == list(range(count))
                assert [int(outcome.body) for outcome in sorted(read, key=lambda outcome: outcome.index)] == times

    asyncio.run(scenario())


def test_rate_and_quantiles(redis_url):
    """Latencies of the calls come back as quantiles, within the width of a bucket."""

    async def scenario() -> None:
        async with opened(redis_url) as ledger:
            claim = await ledger.begin(4)
            await ledger.chunks.commit(claim, Bundle(calls=4, latencies_us=[1000, 1000, 1000, 100_000]))
            p50, p99 = await ledger.batches.latency_quantiles_s(claim.ref.batch_id, [0.5, 0.99])
            assert p50 == pytest.approx(0.001, rel=0.025)
            assert p99 == pytest.approx(0.1, rel=0.025)
            assert await ledger.batches.latency_quantiles_s(claim.ref.batch_id[::-1], [0.5]) == [None]

    asyncio.run(scenario())


@pytest.mark.parametrize("cursor", ["", "x", "1-1/x", "1-", "-1", "99999999999999999999999-1", "1-1/1\n", "\u0661-1"])
def test_what_is_no_cursor(redis_url, cursor):
    """A cursor that no outcome ever had is refused by name, wherever it is given."""

    async def use():
        async with opened(redis_url) as ledger:
            with pytest.raises(UsageError, match="is no cursor: give one"):
                await anext(ledger.batches.outcomes("b", cursor))
            with pytest.raises(UsageError, match="is no cursor: give one"):
                await ledger.batches.release("b", cursor)

    asyncio.run(use())
