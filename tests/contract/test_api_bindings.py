"""Batches are bound to an API, not to its name: what is added, claimed, given back or moved waits for the right one."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from callmill.config.public_api import PublicApi
from callmill.config.redis_connections import connect
from callmill.errors import ApiMismatchError
from callmill.jobs.line import Line
from callmill.jobs.wire import Chunk, WireJob, WireOutcome, encode_chunk
from callmill.ledger import Batches, Bundle, ChunkRef, Chunks, Claim, ClaimRefused, Finish, LedgerSession, keys
from callmill.ledger.api_bindings import ApiBindings
from callmill.ledger.keys import BatchKeys
from callmill.ledger.scripts import script

OLD, NEW = (PublicApi(name="crm", base_url=f"https://{host}.example") for host in "ab")
JOBS = 3


class Ledger:
    """A batch that is bound to the old API."""

    def __init__(self, redis) -> None:
        self.redis = redis
        session = LedgerSession(redis)
        self.batches, self.bindings = Batches(session), ApiBindings(session)
        self.chunks = Chunks(session, worker="w")
        self.id = ""

    async def begin(self, chunks: int, *, own_lines: bool = False, park: bool = False) -> None:
        """Submit the batch."""
        self.id = await self.batches.create("", retention_ms=60_000, own_lines=own_lines)
        line = (await self.batches.record(self.id)).line("crm")
        await self.add(0, chunks, OLD, line=str(replace(line, identity=OLD.identity)), park=park)
        await self.batches.seal(self.id)

    async def add(self, first: int, chunks: int, api: PublicApi, *, line: str, park: bool = False) -> None:
        """Add chunks."""
        payload = encode_chunk(Chunk("crm", 0, [WireJob("GET", "/")] * JOBS))
        await self.batches.add(self.id, first, [(line, payload)] * chunks, park=park, bound_to={"crm": api.at})

    def ref(self, number: int, api: PublicApi, *, own: bool = False) -> ChunkRef:
        """Return a chunk as it is named in the line of an API."""
        return ChunkRef(self.id, number, str(Line("crm", identity=api.identity, batch=self.id if own else "")))

    async def claim(self, ref: ChunkRef) -> Claim:
        """Claim what must be there to be claimed."""
        claim = await self.chunks.claim(ref)
        assert isinstance(claim, Claim)
        return claim

    async def end(self, ref: ChunkRef) -> None:
        """Record every job of a chunk."""
        claim = await self.claim(ref)
        todo = [at for at in range(JOBS) if at not in claim.recorded]
        bundle = Bundle(outcomes=[(at, WireOutcome(at, None, 200, b"", {}, None, None, 1, 0, 1)) for at in todo])
        await self.chunks.commit(claim, bundle, Finish())

    async def begin_due_in_the_old_line(self) -> Claim:
        """Submit a chunk that is due for a retry in the old line when a move is cut off; claim it in the new one."""
        await self.begin(1)
        claim = await self.claim(self.ref(0, OLD))
        failed = [(0, WireOutcome(0, None, 500, b"", {}, "http_500", "no", 1, 0, 1))]
        await self.chunks.commit(claim, Bundle(outcomes=failed), Finish(delay_ms=60_000))
        await self.bindings.bind(self.id, "crm", NEW.at)
        assert await self.batches.retry_failed(self.id) == (1, [self.ref(0, NEW)])
        return await self.claim(self.ref(0, NEW))

    async def queued(self, api: PublicApi) -> int:
        """Return how many chunks are queued for an API."""
        return await self.redis.zcard(keys.queued(str(Line("crm", identity=api.identity))))


@pytest.fixture
def run(redis_url):
    """Run a scenario on a ledger of its own."""

    def run_scenario(scenario) -> None:
        async def main() -> None:
            async with connect(redis_url) as redis:
                await scenario(Ledger(redis))

        asyncio.run(main())

    return run_scenario


def test_what_a_batch_is_bound_to(run):
    """The record tells it, and the line of its chunks; chunks for another API of that name are not added."""

    async def scenario(ledger: Ledger) -> None:
        ledger.id = await ledger.batches.create("", retention_ms=60_000)
        await ledger.add(0, 1, OLD, line=ledger.ref(0, OLD).line)
        record = await ledger.batches.record(ledger.id)
        assert (record.apis, record.bound_to, str(record.line("crm"))) == (
            ["crm"], {"crm": OLD.at}, ledger.ref(0, OLD).line,
        )  # fmt: skip
        with pytest.raises(ApiMismatchError, match=r"https://a\.example.*https://b\.example.*apis move crm"):
            await ledger.add(1, 1, NEW, line=ledger.ref(0, NEW).line)
        assert (await ledger.batches.record(ledger.id)).chunks == 1
        (bound,) = await ledger.bindings.unfinished()
        assert (bound.api, bound.to, bound.batches, bound.jobs) == ("crm", OLD.at, [ledger.id], JOBS)

    run(scenario)


def test_moved_chunks_wait_for_the_other_api(run):
    """Queued chunks are in the other line at once, each in one only; the hints of before lead to nothing."""

    async def scenario(ledger: Ledger) -> None:
        await ledger.begin(4)
        refs = await ledger.bindings.move("crm", NEW.at)
        assert sorted(refs) == [ledger.ref(number, NEW) for number in range(4)]
        assert (await ledger.queued(OLD), await ledger.queued(NEW)) == (0, 4)
        assert await ledger.chunks.claim(ledger.ref(0, OLD)) is ClaimRefused.MOVED
        assert await ledger.bindings.move("crm", NEW.at) == []
        for ref in refs:
            await ledger.end(ref)
        record = await ledger.batches.record(ledger.id)
        assert (record.succeeded, record.ended, record.bound_to) == (4 * JOBS, True, {"crm": NEW.at})

    run(scenario)


def test_a_move_that_is_cut_off_loses_nothing(run):
    """Where the batch is bound but its chunks were not moved yet, the next move finds them, and so does a claim."""

    async def scenario(ledger: Ledger) -> None:
        await ledger.begin(3)
        await ledger.bindings.bind(ledger.id, "crm", NEW.at)
        assert await ledger.chunks.claim(ledger.ref(0, OLD)) is ClaimRefused.MOVED
        assert (await ledger.queued(OLD), await ledger.queued(NEW)) == (2, 1)
        assert len(await ledger.bindings.move("crm", NEW.at)) == 2
        assert (await ledger.queued(OLD), await ledger.queued(NEW)) == (0, 3)

    run(scenario)


@pytest.mark.parametrize("how", ["given back", "waits", "died", "parked"])
def test_what_was_not_queued_follows(run, how):
    """A chunk that a worker held, that waited for a retry or was held back goes to the other line when it is queued."""

    async def scenario(ledger: Ledger) -> None:
        await ledger.begin(1, park=how == "parked")
        old, new = ledger.ref(0, OLD), ledger.ref(0, NEW)
        claim = None if how == "parked" else await ledger.claim(old)
        if claim and how == "waits":
            await ledger.chunks.commit(claim, Bundle(), Finish(delay_ms=60_000))
        assert await ledger.bindings.move("crm", NEW.at) == []
        if claim and how == "given back":
            assert not (await ledger.chunks.commit(claim, Bundle(), Finish())).hint_wanted
        elif how == "parked":
            assert await ledger.batches.unpark(ledger.id) == [new]
        else:
            due = new if how == "waits" else old
            assert await ledger.redis.zadd(keys.DUE, {due.member: 0}, xx=True, ch=True) == 1
            await ledger.chunks.requeue_due()
            assert await ledger.redis.zscore(keys.DUE, new.member)  # looked after until somebody takes it
        assert (await ledger.queued(OLD), await ledger.queued(NEW)) == (0, 1)
        await ledger.end(new)
        assert (await ledger.batches.record(ledger.id)).ended
        assert await ledger.redis.zcard(keys.DUE) == 0

    run(scenario)


def test_a_lease_in_the_new_line_outlives_what_was_due_in_the_old_one(run):
    """A chunk that waited in the old line and was claimed in the new one is not taken away when the former was due."""

    async def scenario(ledger: Ledger) -> None:
        claim = await ledger.begin_due_in_the_old_line()
        await ledger.redis.zadd(keys.DUE, {ledger.ref(0, OLD).member: 0}, xx=True)
        assert (await ledger.chunks.requeue_due()).put_back == []
        assert (await ledger.batches.record(ledger.id)).leased == 1
        bundle = Bundle(outcomes=[(at, WireOutcome(at, None, 200, b"", {}, None, None, 1, 0, 1)) for at in range(JOBS)])
        await ledger.chunks.commit(claim, bundle, Finish())
        assert (await ledger.batches.record(ledger.id)).succeeded == JOBS
        assert await ledger.redis.zcard(keys.DUE) == 0

    run(scenario)


async def renew(ledger: Ledger, claim: Claim) -> int:
    """Return what a worker is told of its claim."""
    names, arguments = ledger.chunks.renewal([claim])
    (answer,) = await ledger.redis.eval(script("renew"), len(names), *names, *arguments)
    return answer


def test_a_hint_of_an_earlier_binding_ends_no_lease(run):
    """Moved there, back, claimed, moved there again: the hint of the first move gets nothing while the lease runs."""

    async def scenario(ledger: Ledger) -> None:
        await ledger.begin(1)
        old, new = ledger.ref(0, OLD), ledger.ref(0, NEW)
        await ledger.bindings.move("crm", NEW.at)
        await ledger.bindings.move("crm", OLD.at)
        claim = await ledger.claim(old)
        await ledger.bindings.move("crm", NEW.at)
        assert await ledger.chunks.claim(new) is ClaimRefused.LEASED
        await ledger.redis.zadd(keys.DUE, {old.member: 0}, xx=True)
        assert await ledger.chunks.claim(new) is ClaimRefused.LEASED, "requeue puts it right"
        assert (await renew(ledger, claim)) == 2
        bundle = Bundle(outcomes=[(0, WireOutcome(0, None, 200, b"", {}, None, None, 1, 0, 1))])
        await ledger.chunks.commit(claim, bundle)
        await ledger.redis.zadd(keys.DUE, {old.member: 0}, xx=True)
        await ledger.chunks.requeue_due()
        await ledger.end(new)
        record = await ledger.batches.record(ledger.id)
        assert (record.succeeded, record.leased, record.ended) == (JOBS, 0, True)
        assert await ledger.redis.zcard(keys.DUE) == 0

    run(scenario)


def test_what_was_due_in_a_line_of_before_ends_no_lease(run):
    """What is left in the schedule of an earlier binding is gone with the next claim, wherever the batch goes then."""

    async def scenario(ledger: Ledger) -> None:
        claim = await ledger.begin_due_in_the_old_line()
        await ledger.bindings.move("crm", OLD.at)
        await ledger.redis.zadd(keys.DUE, {ledger.ref(0, OLD).member: 0}, xx=True)
        await ledger.chunks.requeue_due()
        assert await ledger.chunks.claim(ledger.ref(0, OLD)) is ClaimRefused.LEASED
        assert (await renew(ledger, claim)) == 2

    run(scenario)


def test_a_lease_that_is_in_no_schedule_holds_nothing_up(run):
    """A leased chunk whose entry in the schedule was lost can be claimed with any hint of the line it is bound to."""

    async def scenario(ledger: Ledger) -> None:
        await ledger.begin(1)
        await ledger.claim(ledger.ref(0, OLD))
        await ledger.bindings.move("crm", NEW.at)
        await ledger.redis.delete(keys.DUE)
        await ledger.end(ledger.ref(0, NEW))
        assert (await ledger.batches.record(ledger.id)).ended

    run(scenario)


def test_a_held_chunk_is_held_once(run):
    """A chunk that was held before a move, and is claimed in the new line while its batch is paused, is held once."""

    async def scenario(ledger: Ledger) -> None:
        await ledger.begin(1, park=True)
        await ledger.bindings.move("crm", NEW.at)
        await ledger.batches.control(ledger.id, "paused")
        assert await ledger.chunks.claim(ledger.ref(0, NEW)) == ClaimRefused.PAUSED
        parked = await ledger.redis.zrange(BatchKeys(ledger.id).parked, 0, -1)
        assert parked == [ledger.ref(0, NEW).member.encode()]

    run(scenario)


def test_who_holds_a_chunk_that_moved_starts_no_further_calls(run):
    """Workers are told at once to look again, and then that the rest goes elsewhere; in the old binding it goes on."""

    async def scenario(ledger: Ledger) -> None:
        await ledger.begin(1)
        claim = await ledger.claim(ledger.ref(0, OLD))
        assert await renew(ledger, claim) == 1
        controls = await ledger.batches.controls()
        await ledger.bindings.move("crm", OLD.at)
        assert await ledger.batches.controls() == controls
        await ledger.bindings.move("crm", NEW.at)
        assert await ledger.batches.controls() > controls
        assert await renew(ledger, claim) == 2
        await ledger.bindings.move("crm", OLD.at)
        assert await renew(ledger, claim) == 1

    run(scenario)


@pytest.mark.parametrize("line", ["crm", "crm@bulk", "crm@bulk@i0123456789"])
def test_leases_of_a_batch_that_is_bound_to_none_go_on(run, line):
    """Chunks in lines of any API of a name are renewed as before, also where a tenant is called like an identity."""

    async def scenario(ledger: Ledger) -> None:
        ledger.id = await ledger.batches.create("", retention_ms=60_000)
        payload = encode_chunk(Chunk("crm", 0, [WireJob("GET", "/")] * JOBS))
        await ledger.batches.add(ledger.id, 0, [(line, payload)], park=False)
        assert await renew(ledger, await ledger.claim(ChunkRef(ledger.id, 0, line))) == 1

    run(scenario)


def test_failed_jobs_run_again_where_their_batch_is_bound(run):
    """Jobs that are run again after a move wait for the other API."""

    async def scenario(ledger: Ledger) -> None:
        await ledger.begin(1)
        claim = await ledger.claim(ledger.ref(0, OLD))
        failed = [(at, WireOutcome(at, None, 500, b"", {}, "http_500", "no", 1, 0, 1)) for at in range(JOBS)]
        await ledger.chunks.commit(claim, Bundle(outcomes=failed), Finish())
        await ledger.bindings.bind(ledger.id, "crm", NEW.at)
        assert await ledger.batches.retry_failed(ledger.id) == (JOBS, [ledger.ref(0, NEW)])

    run(scenario)


def test_a_batch_with_lines_of_its_own(run):
    """Its chunks wait where those of no other batch do; a batch can be given such lines later."""

    async def scenario(ledger: Ledger) -> None:
        await ledger.begin(1, own_lines=True)
        await ledger.end(ledger.ref(0, OLD, own=True))
        await ledger.begin(1)
        own = ledger.ref(0, OLD, own=True)
        await ledger.bindings.bind(ledger.id, "crm", OLD.at, own_lines=True)
        assert await ledger.bindings.follow(ledger.id) == [own]
        await ledger.end(own)
        assert (await ledger.batches.record(ledger.id)).ended

    run(scenario)


def test_a_batch_that_is_bound_to_none_stays_where_it_is(run):
    """Batches of before, or of a producer that knew no API, wait in the plain line, and are not moved."""

    async def scenario(ledger: Ledger) -> None:
        ledger.id = await ledger.batches.create("", retention_ms=60_000)
        payload = encode_chunk(Chunk("crm", 0, [WireJob("GET", "/")] * JOBS))
        await ledger.batches.add(ledger.id, 0, [("crm", payload)], park=False)
        assert await ledger.bindings.move("crm", NEW.at) == []
        await ledger.end(ChunkRef(ledger.id, 0, "crm"))

    run(scenario)


def test_nothing_of_a_cancelled_batch_is_moved(run):
    """A cancelled batch whose chunk is still queued gets no hint for it when what waits is moved."""

    async def scenario(ledger: Ledger) -> None:
        await ledger.begin(1)
        await ledger.batches.control(ledger.id, "cancelled")
        assert await ledger.bindings.move("crm", NEW.at) == []
        assert await ledger.queued(NEW) == 0

    run(scenario)
