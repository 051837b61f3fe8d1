"""Steps of the ledger that random interleavings seldom meet, one by one."""

from __future__ import annotations

import asyncio

import pytest

from callmill.config.redis_connections import connect
from callmill.errors import StaleLeaseError
from callmill.jobs.formats import FORMAT
from callmill.jobs.line import Line
from callmill.jobs.traffic import NORMAL, Priority, TrafficClass
from callmill.jobs.wire import Chunk, WireJob, WireOutcome, encode_chunk
from callmill.ledger import (
    Batches,
    Bundle,
    ChunkRef,
    Chunks,
    Claim,
    ClaimRefused,
    Finish,
    LedgerSession,
    Lines,
    Requeued,
    Throttles,
    keys,
)
from callmill.ledger.keys import BatchKeys


class Steps:
    """One sealed batch of one chunk."""

    def __init__(self, redis_url: str) -> None:
        self.redis = connect(redis_url)
        session = LedgerSession(self.redis)
        self.batches = Batches(session)
        self.chunks = Chunks(session, worker="w")
        self.ref = ChunkRef("", 0, "api")

    async def begin(self, jobs: int) -> Claim:
        """Submit and claim."""
        batch_id = await self.batches.create("", retention_ms=60_000)
        await self.batches.add(
            batch_id, 0, [("api", encode_chunk(Chunk("api", 0, [WireJob("GET", "/")] * jobs)))], park=False
        )
        await self.batches.seal(batch_id)
        self.ref = ChunkRef(batch_id, 0, "api")
        return await self.claim()

    async def claim(self) -> Claim:
        """Claim what must be there to be claimed."""
        claim = await self.chunks.claim(self.ref)
        assert isinstance(claim, Claim)
        return claim

    async def record(self, claim: Claim, failed: set[int], of: range, finish: Finish | None = None) -> None:
        """Record these jobs."""
        outcomes = []
        for at in of:
            code = "http_500" if at in failed else None
            outcomes.append((at, WireOutcome(at, None, 200, b"", {}, code, code, 1, 0, 1)))
        await self.chunks.commit(claim, Bundle(outcomes=outcomes), finish)

    async def lease_ends(self) -> None:
        """Let the lease be over."""
        await self.redis.zadd(keys.DUE, {self.ref.member: 0}, xx=True)


@pytest.fixture
def run(redis_url):
    """Run a scenario on a ledger of its own."""

    def run_scenario(scenario) -> None:
        async def main() -> None:
            steps = Steps(redis_url)
            try:
                await scenario(steps)
            finally:
                await steps.redis.aclose()

        asyncio.run(main())

    return run_scenario


@pytest.mark.parametrize("jobs", [1, 7, 8, 9, 16, 17, 100])
def test_exactly_the_failed_jobs_run_again(run, jobs):
    """A retry opens the failed jobs and no others, wherever the number of jobs lies on the bytes of the bitmap."""

    async def scenario(steps: Steps) -> None:
        failed = {0, jobs - 1}
        await steps.record(await steps.begin(jobs), failed, range(jobs), Finish())
        assert await steps.batches.retry_failed(steps.ref.batch_id) == (len(failed), [steps.ref])
        again = await steps.claim()
        assert again.recorded == set(range(jobs)) - failed
        await steps.chunks.commit(again, Bundle(), Finish())
        again = await steps.claim()
        await steps.record(again, set(), range(jobs - 1, jobs), None)
        if jobs > 1:
            await steps.record(again, set(), range(1), None)
        await steps.chunks.commit(again, Bundle(), Finish())
        record = await steps.batches.record(steps.ref.batch_id)
        assert (record.succeeded, record.failed, record.ended, record.leased) == (jobs, 0, True, 0)

    run(scenario)


def test_attempts_come_back_with_the_next_claim(run):
    """What jobs that are not over spent, were spared and were refused is known to whoever claims the chunk next."""

    async def scenario(steps: Steps) -> None:
        claim = await steps.begin(5)
        refused = {0: Throttles(1, 5), 2: Throttles(99, 2**41)}
        finish = Finish(attempts={2: 1, 4: 3}, not_before_ms={2: 4}, spared={0: 7, 2: 5}, throttles=refused)
        await steps.record(claim, set(), range(2), finish)
        claim = await steps.claim()
        assert (claim.attempts, claim.not_before_ms) == ({2: 1, 4: 3}, {2: 4})
        assert (claim.spared, claim.throttles) == ({0: 7, 2: 5}, refused)
        await steps.chunks.release(claim, 0)
        claim = await steps.claim()
        assert (claim.spared, claim.throttles) == ({0: 7, 2: 5}, refused)

    run(scenario)


def test_chunk_recorded_to_the_end_needs_nobody(run):
    """A worker that died after its last record and before it gave the chunk up leaves nothing to do, and the end."""

    async def scenario(steps: Steps) -> None:
        claim = await steps.begin(3)
        await steps.record(claim, {1}, range(3))
        assert not (await steps.batches.record(steps.ref.batch_id)).ended
        await steps.lease_ends()
        assert await steps.chunks.claim(steps.ref) == ClaimRefused.GONE
        record = await steps.batches.record(steps.ref.batch_id)
        assert (record.ended, record.leased, record.failed) == (True, 0, 1)
        assert await steps.redis.zcard(keys.DUE) == await steps.redis.zcard(keys.queued("api")) == 0
        assert (await steps.batches.retry_failed(steps.ref.batch_id))[0] == 1

    run(scenario)


def test_lapsed_lease_of_a_paused_batch_is_parked(run):
    """A hint that finds a lapsed lease in a paused batch parks the chunk, and the lease is counted back."""

    async def scenario(steps: Steps) -> None:
        await steps.begin(3)
        await steps.batches.control(steps.ref.batch_id, "paused")
        await steps.lease_ends()
        assert await steps.chunks.claim(steps.ref) == ClaimRefused.PAUSED
        assert (await steps.batches.record(steps.ref.batch_id)).leased == 0
        await steps.batches.control(steps.ref.batch_id, "run")
        assert await steps.batches.resumed() == [steps.ref.batch_id]
        assert await steps.batches.unpark(steps.ref.batch_id) == [steps.ref]
        assert await steps.batches.resumed() == []

    run(scenario)


def test_lease_ends_by_the_clock_of_redis(run):
    """A lease that nobody renews ends by itself, and the chunk is queued again with a hint wanted."""

    async def scenario(steps: Steps) -> None:
        first = await steps.begin(3)
        short = Chunks(LedgerSession(steps.redis), worker="short", lease_ms=30)
        await steps.lease_ends()
        assert isinstance(await short.claim(steps.ref), Claim)
        assert await steps.chunks.claim(steps.ref) == ClaimRefused.LEASED
        async with asyncio.timeout(5):
            while not (refs := (await steps.chunks.requeue_due()).put_back):  # noqa: ASYNC110 - the event is Redis's clock
                await asyncio.sleep(0.005)
        assert refs == [steps.ref]
        assert (await steps.claim()).fence > first.fence

    run(scenario)


def test_fence_is_not_given_out_twice_by_a_server_that_lost_its_last_writes(run):
    """Where Redis came back without a claim, the next claim of the chunk has a higher fence than the lost one."""

    async def scenario(steps: Steps) -> None:
        lost = await steps.begin(3)
        await steps.redis.hdel(BatchKeys(steps.ref.batch_id).state, "0")
        assert (await steps.claim()).fence > lost.fence
        with pytest.raises(StaleLeaseError):
            await steps.chunks.commit(lost, Bundle(), Finish())

    run(scenario)


def test_chunk_put_back_is_looked_after_until_it_is_taken(run):
    """A dead worker's chunk gets another hint when nobody takes it, however many others wait; none while in hand."""

    async def scenario(steps: Steps) -> None:
        await steps.begin(3)
        await steps.lease_ends()
        assert await steps.chunks.requeue_due() == Requeued(put_back=[steps.ref])
        await steps.lease_ends()  # the time of the next look
        assert await steps.chunks.requeue_due() == Requeued(), "its hint is on its way"
        for _ in range(2):
            await steps.redis.zadd(keys.queued("api"), {steps.ref.member: 1}, xx=True)  # waiting for long
            await steps.lease_ends()
            assert await steps.chunks.requeue_due() == Requeued(not_taken=[steps.ref])
        claim = await steps.claim()
        await steps.chunks.commit(claim, Bundle(), Finish())
        assert await steps.redis.zscore(keys.DUE, steps.ref.member) is None
        assert await steps.chunks.requeue_due() == Requeued()

    run(scenario)


def test_stranded_chunks_are_named_once_a_while(run):
    """A chunk queued for long is named once, then not again before the same time has passed."""

    async def scenario(steps: Steps) -> None:
        claim = await steps.begin(3)
        await steps.chunks.commit(claim, Bundle(), Finish())
        assert await steps.chunks.stranded(["api"], 60_000) == []
        await steps.redis.zadd(keys.queued("api"), {steps.ref.member: 1})
        assert await steps.chunks.stranded(["api"], 60_000) == [steps.ref]
        assert await steps.chunks.stranded(["api"], 60_000) == []

    run(scenario)


def test_line_is_known_while_a_chunk_is_queued_in_it(run):
    """A line is known from the moment when its first chunk is queued, and forgotten once nothing waits in it."""

    async def scenario(steps: Steps) -> None:
        lines, traffic = Lines(LedgerSession(steps.redis)), TrafficClass(Priority.BULK, "acme")
        batch_id = await steps.batches.create("", retention_ms=60_000, traffic=traffic)
        assert (await steps.batches.record(batch_id)).traffic == traffic
        line = Line("api", traffic)
        await steps.batches.add(
            batch_id, 0, [(str(line), encode_chunk(Chunk("api", 0, [WireJob("GET", "/")])))], park=True
        )
        assert await lines.used() == []
        await steps.batches.seal(batch_id)
        (ref,) = await steps.batches.unpark(batch_id)
        assert (ref.line, ref.api) == ("api@bulk@acme", "api")
        assert await lines.used() == [line]
        assert (await steps.batches.record(batch_id)).apis == ["api"]
        assert await lines.prune(0) == 0
        assert isinstance(await steps.chunks.claim(ref), Claim)
        assert await lines.prune(60) == 0
        assert await lines.used() == [line]
        assert await lines.prune(0) == 1
        assert await lines.used() == []

    run(scenario)


def test_batch_of_the_version_before_is_normal(run):
    """A batch without a class in its record has that of an API's own line, and so have its chunks."""

    async def scenario(steps: Steps) -> None:
        claim = await steps.begin(1)
        await steps.redis.hdel(BatchKeys(claim.ref.batch_id).meta, "priority", "tenant")
        assert (await steps.batches.record(claim.ref.batch_id)).traffic == NORMAL
        assert claim.ref.member == f"{claim.ref.batch_id}/0/api"
        assert await Lines(LedgerSession(steps.redis)).used() == []

    run(scenario)


def test_line_of_a_newer_version_is_left_alone(run):
    """A line that this version cannot read is not served, and does not hide the others."""

    async def scenario(steps: Steps) -> None:
        await steps.redis.zadd(keys.LINES, {"api@urgent": 1, "api@bulk": 2})
        assert await Lines(LedgerSession(steps.redis)).used() == [Line("api", TrafficClass(Priority.BULK))]

    run(scenario)


def test_batches_that_wait_for_a_newer_worker_are_named(run):
    """Lines of a newer format name the batches that wait in them, each once; other lines name none."""

    async def scenario(steps: Steps) -> None:
        newer, other = f"api@f{FORMAT + 1}", f"crm@f{FORMAT + 1}@bulk"
        await steps.begin(1)
        await steps.redis.zadd(keys.LINES, {newer: 1, "api@bulk": 2, other: 3})
        await steps.redis.zadd(keys.queued(newer), {f"b1/0/{newer}": 1, f"b1/1/{newer}": 2, f"b2/0/{newer}": 3})
        await steps.redis.zadd(keys.queued(other), {f"b3/0/{other}": 1})
        await steps.redis.zadd(keys.queued("api@bulk"), {"b4/0/api@bulk": 1})
        named = await Lines(LedgerSession(steps.redis)).newer()
        assert sorted(named) == ["b1", "b2", "b3"]
        assert f"batch b3 was written by Callmill with ledger format {FORMAT + 1}" in str(named["b3"])

    run(scenario)


def test_a_ledger_in_which_all_is_over_needs_nobody(run):
    """There is something to look after from when a batch is created to its end, and again when it is retried."""

    async def scenario(steps: Steps) -> None:
        assert not await steps.batches.any_to_look_after()
        claim = await steps.begin(2)
        assert await steps.batches.any_to_look_after()
        await steps.record(claim, {1}, range(2), Finish())
        assert not await steps.batches.any_to_look_after()
        await steps.batches.retry_failed(steps.ref.batch_id)
        assert await steps.batches.any_to_look_after()

    run(scenario)
