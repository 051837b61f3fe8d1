"""A batch whose outcomes nobody reads: bounded in Redis, held, and complete in the end."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager

import pytest

from callmill.config.redis_connections import connect
from callmill.jobs.wire import Chunk, WireJob, WireOutcome, encode_chunk
from callmill.ledger import FIRST, Batches, Bundle, ChunkRef, Chunks, Claim, ClaimRefused, Finish, LedgerSession
from callmill.ledger.keys import CONTROLS, BatchKeys
from callmill.ledger.scripts import script

BODY_BYTES = 1000
BOUND = 5_000
JOBS = 4


class Ledger:
    """A ledger with one batch of chunks of four jobs, whose outcomes may fill 5 kB."""

    def __init__(self, redis_url: str) -> None:
        self.redis = connect(redis_url)
        session = LedgerSession(self.redis)
        self.batches = Batches(session)
        self.chunks = Chunks(session, worker="w")

    async def begin(self, chunks: int, *, bound: int = BOUND, seal: bool = True) -> None:
        """Submit the batch."""
        self.id = await self.batches.create("", retention_ms=60_000, max_unread_bytes=bound)
        await self.add(0, chunks)
        if seal:
            await self.batches.seal(self.id)

    async def add(self, first: int, chunks: int) -> None:
        """Submit further chunks."""
        payloads = [("api", encode_chunk(Chunk("api", JOBS * n, [WireJob("GET", "/")] * JOBS))) for n in range(chunks)]
        await self.batches.add(self.id, first, payloads, park=False)

    async def claim(self, number: int) -> Claim | ClaimRefused:
        """Take a chunk."""
        return await self.chunks.claim(ChunkRef(self.id, number, "api"))

    async def record(self, claim: Claim | ClaimRefused, offsets: range, finish: Finish | None = None) -> bool:
        """Record jobs of a chunk; return whether its calls may go on."""
        assert isinstance(claim, Claim)
        first = JOBS * claim.ref.number
        bundle = Bundle()
        for at in offsets:
            bundle.add(at, WireOutcome(first + at, None, 200, random.randbytes(BODY_BYTES), {}, None, None, 1, 0, 1000))
        return (await self.chunks.commit(claim, bundle, finish)).proceed

    async def read(self, *, release: bool = False) -> list[int]:
        """Read every outcome until the batch is over."""
        return [outcome.index async for bundle in self.batches.outcomes(self.id, release=release) for outcome in bundle]

    async def unread(self) -> int:
        """Return the bytes of the bundles that are in the stream, counted one by one."""
        return sum(len(fields.get(b"b", b"")) for _, fields in await self.redis.xrange(BatchKeys(self.id).outcomes))


@asynccontextmanager
async def opened(redis_url: str):
    """Open a ledger for one test."""
    ledger = Ledger(redis_url)
    try:
        yield ledger
    finally:
        await ledger.redis.aclose()


def test_full_batch_is_held_until_half_is_released(redis_url):
    """Over its bound a batch starts nothing, keeps every chunk and says so; at half of it everything goes on."""

    async def scenario() -> None:
        async with opened(redis_url) as ledger:
            await ledger.begin(3)
            one, two = await ledger.claim(0), await ledger.claim(1)
            assert await ledger.record(one, range(4), Finish())
            before = int(await ledger.redis.get(CONTROLS) or 0)
            assert not await ledger.record(two, range(1))  # 4 kB are below the bound, these are over it
            assert int(await ledger.redis.get(CONTROLS)) == before + 1
            assert not await ledger.record(two, range(1, 2))  # in flight: recorded all the same
            assert not await ledger.record(two, range(0), Finish(delay_ms=5_000))
            assert await ledger.claim(2) == await ledger.claim(1) == ClaimRefused.PAUSED
            assert await ledger.batches.unpark(ledger.id) == []
            record = await ledger.batches.record(ledger.id)
            assert (record.full, record.recorded) == (True, 6)
            assert record.unread_bytes == await ledger.unread() > BOUND
            entries = [entry.decode() for entry, _ in await ledger.redis.xrange(BatchKeys(ledger.id).outcomes)]
            assert await ledger.batches.release(ledger.id, f"{entries[0]}/4")  # 2 kB are left, beside what was read
            assert int(await ledger.redis.get(CONTROLS)) == before + 2
            assert await ledger.batches.resumed() == [ledger.id]
            assert sorted(ref.number for ref in await ledger.batches.unpark(ledger.id)) == [1, 2]
            for number in (1, 2):
                claim = await ledger.claim(number)
                assert isinstance(claim, Claim)
                await ledger.record(claim, range(2 if number == 1 else 0, 4), Finish())
            assert (await ledger.batches.record(ledger.id)).ended
            assert await ledger.read() == list(range(12))

    asyncio.run(scenario())


def test_unread_bytes_are_exact_however_they_are_released(redis_url):
    """After any release, repeated and out of order, what counts as unread is what is in the stream but was not read."""

    async def scenario() -> None:
        async with opened(redis_url) as ledger:
            await ledger.begin(4, bound=0)
            for number in range(4):
                await ledger.record(await ledger.claim(number), range(4), Finish())
            entries = [entry.decode() for entry, _ in await ledger.redis.xrange(BatchKeys(ledger.id).outcomes)]
            size = await ledger.unread() // 4
            for at in (0, 0, 2, 1, 2, 4, 4):
                await ledger.batches.release(ledger.id, entries[at])
                record = await ledger.batches.record(ledger.id)
                behind = await ledger.redis.xrange(BatchKeys(ledger.id).outcomes, min=f"({entries[at]}")
                left = sum(len(fields.get(b"b", b"")) for _, fields in behind)
                assert record.unread_bytes == (left if at != 1 else size)  # 1 is dropped already, and 2 was read
                assert not record.full

    asyncio.run(scenario())


def test_reading_with_release_ends_a_batch_far_larger_than_its_bound(redis_url):
    """A reader that releases gets every outcome once while the stream never holds more than bound and overshoot."""

    async def scenario() -> None:
        async with opened(redis_url) as ledger:
            chunks = 20
            await ledger.begin(chunks)
            reading = None
            done: set[int] = set()
            most = 0
            while len(done) < chunks:
                for number in set(range(chunks)) - done:
                    claim = await ledger.claim(number)
                    if isinstance(claim, Claim):
                        await ledger.record(claim, range(4), Finish())
                        done.add(number)
                        most = max(most, await ledger.unread())
                reading = reading or asyncio.create_task(ledger.read(release=True))  # now that it is full
                await ledger.batches.unpark(ledger.id)
                await asyncio.sleep(0)
            assert reading is not None
            assert sorted(await asyncio.wait_for(reading, 10)) == list(range(JOBS * chunks))
            assert BOUND < most < BOUND + 2 * JOBS * (BODY_BYTES + 100)  # a chunk above, and the one that was read
            assert await ledger.unread() == 0

    asyncio.run(scenario())


def test_bundle_larger_than_the_bound_does_not_hold_for_ever(redis_url):
    """Where the last bundle that was read is above the bound by itself, its release lets the batch go on."""

    async def scenario() -> None:
        async with opened(redis_url) as ledger:
            await ledger.begin(2, bound=500)
            assert not await ledger.record(await ledger.claim(0), range(4), Finish())
            assert await ledger.claim(1) == ClaimRefused.PAUSED
            first = await anext(ledger.batches.outcomes(ledger.id))
            assert await ledger.batches.release(ledger.id, first[-1].cursor)
            assert [ref.number for ref in await ledger.batches.unpark(ledger.id)] == [1]

    asyncio.run(scenario())


@pytest.mark.parametrize("control", ["paused", "cancelled"])
def test_release_does_not_undo_what_people_said(redis_url, control):
    """A batch that is full and was paused stays paused when it is read, and a cancelled one is over."""

    async def scenario() -> None:
        async with opened(redis_url) as ledger:
            await ledger.begin(2)
            claim = await ledger.claim(0)
            await ledger.record(claim, range(4))
            two = await ledger.claim(1)
            await ledger.record(two, range(4), Finish())
            await ledger.batches.control(ledger.id, control)
            await ledger.record(claim, range(0), Finish())
            last = (await ledger.redis.xrevrange(BatchKeys(ledger.id).outcomes, count=1))[0][0].decode()
            assert not await ledger.batches.release(ledger.id, last)
            assert await ledger.batches.resumed() == []
            assert (await ledger.batches.record(ledger.id)).ended

    asyncio.run(scenario())


def test_chunks_added_to_a_full_batch_wait(redis_url):
    """What a producer adds while the batch is full is kept back, and runs once it is read."""

    async def scenario() -> None:
        async with opened(redis_url) as ledger:
            await ledger.begin(2, seal=False)
            for number in range(2):
                await ledger.record(await ledger.claim(number), range(4), Finish())
            await ledger.add(2, 1)
            assert await ledger.redis.zcard(BatchKeys(ledger.id).parked) == 1
            bundles = ledger.batches.outcomes(ledger.id, FIRST)
            cursor = [(await anext(bundles))[-1].cursor for _ in range(2)][-1]
            assert await ledger.batches.release(ledger.id, cursor)
            assert [ref.number for ref in await ledger.batches.unpark(ledger.id)] == [2]

    asyncio.run(scenario())


def test_renewal_tells_holders_that_the_batch_is_full(redis_url):
    """A worker that holds a chunk of a full batch and records nothing hears of it when it renews its lease."""

    async def scenario() -> None:
        async with opened(redis_url) as ledger:
            await ledger.begin(3)
            idle = await ledger.claim(2)
            assert isinstance(idle, Claim)
            keys, arguments = ledger.chunks.renewal([idle])
            renew = ledger.redis.register_script(script("renew"))
            assert await renew(keys=keys, args=arguments) == [1]
            for number in range(2):
                await ledger.record(await ledger.claim(number), range(4), Finish())
            assert await renew(keys=keys, args=arguments) == [2]

    asyncio.run(scenario())
