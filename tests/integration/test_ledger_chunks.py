"""What workers ask of the ledger, and what they are told, chunk by chunk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec
import pytest

from callmill.config.lua_script import Call
from callmill.config.redis_connections import connect
from callmill.errors import RedisUnavailableError, StaleLeaseError, UnknownFormatError
from callmill.jobs.formats import FORMAT
from callmill.jobs.wire import Chunk, WireJob, WireOutcome, encode_chunk
from callmill.ledger import (
    Batches,
    BatchRecord,
    Bundle,
    ChunkRef,
    Chunks,
    Claim,
    CommitResult,
    Finish,
    LedgerSession,
    Suspect,
    Throttles,
    keys,
)
from callmill.ledger.chunks import commit_call
from callmill.ledger.keys import BatchKeys
from callmill.ledger.scripts import RENEW

JOBS = 3
NEWER = f"api@f{FORMAT + 1}"


class Ledger:
    """A ledger, and a worker on it."""

    def __init__(self, redis_url: str) -> None:
        self.redis = connect(redis_url)
        self.session = LedgerSession(self.redis)
        self.batches = Batches(self.session)
        self.chunks = Chunks(self.session, worker="w", lease_ms=60_000)

    async def submit(self, chunks: int = 1, jobs: int = JOBS, **options: Any) -> list[ChunkRef]:
        """Submit a batch of chunks of so many jobs."""
        batch_id = await self.batches.create("nightly", retention_ms=60_000, **options)
        payload = encode_chunk(Chunk("api", 0, [WireJob("GET", "/")] * jobs))
        await self.batches.add(batch_id, 0, [("api", payload)] * chunks, park=False)
        await self.batches.seal(batch_id)
        return [ChunkRef(batch_id, number, "api") for number in range(chunks)]

    async def claim(self, ref: ChunkRef) -> Claim:
        """Claim what must be there to be claimed."""
        claim = await self.chunks.claim(ref)
        assert isinstance(claim, Claim)
        return claim

    async def claimed(self, chunks: int = 1, jobs: int = JOBS) -> list[Claim]:
        """Submit a batch and claim its chunks."""
        return [await self.claim(ref) for ref in await self.submit(chunks, jobs)]

    async def record(self, claim: Claim) -> BatchRecord:
        """Return the batch of a claim."""
        return await self.batches.record(claim.ref.batch_id)

    async def slowest(self, claim: Claim) -> dict[bytes, float]:
        """Return the slowest jobs of the batch."""
        return dict(await self.redis.zrange(BatchKeys(claim.ref.batch_id).slowest, 0, -1, withscores=True))


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


def bundle(offsets: Sequence[int], failed: Sequence[int] = (), *, latency_us: int = 1000, **n: int) -> Bundle:
    """Return outcomes of these jobs."""
    made = Bundle(**{"calls": len(offsets), **n})
    for at in offsets:
        code = "http_500" if at in failed else None
        made.add(at, WireOutcome(at, None, 500 if code else 200, b"ok", {}, code, code, 1, 0, latency_us + at))
        made.latencies_us.append(latency_us + at)
    return made


@pytest.mark.parametrize("counts", [{"calls": 1}, {"retries": 1}, {"throttled": 1}])
def test_a_bundle_of_counts_alone_is_something_to_record(counts):
    """A bundle is empty only where it has neither outcomes nor anything counted."""
    assert Bundle(**counts)
    assert bundle([0])
    assert not Bundle(latencies_us=[])


def test_a_bundle_that_comes_again_counts_once(run):
    """Of a bundle whose first try got through only what is new is recorded, and nothing is counted twice."""

    async def scenario(ledger: Ledger) -> None:
        (claim,) = await ledger.claimed()
        await ledger.chunks.commit(claim, bundle([0, 1], [1], retries=2, throttled=1))
        for _ in range(2):
            result = await ledger.chunks.commit(claim, bundle([0, 1, 2], [1], retries=5, throttled=4))
            assert result == CommitResult(hint_wanted=False, proceed=True)
        record = await ledger.record(claim)
        assert (record.succeeded, record.failed, record.calls, record.retries, record.throttled) == (2, 1, 2, 2, 1)
        await ledger.chunks.commit(claim, bundle([0, 1, 2], [1]), Finish())
        assert (await ledger.record(claim)).ended

    run(scenario)


def test_one_commit_that_fails_takes_none_along(run):
    """In a round trip of several commits the error of each stands in its place, and the others are recorded."""

    async def scenario(ledger: Ledger) -> None:
        first, stale, newer, last = [(await ledger.claimed())[0] for _ in range(4)]
        await ledger.redis.zadd(keys.DUE, {stale.ref.member: 0}, xx=True)
        await ledger.claim(stale.ref)
        await ledger.redis.hset(BatchKeys(newer.ref.batch_id).meta, "format", FORMAT + 1)
        results = await ledger.chunks.commit_all(
            [(claim, bundle([0]), Finish() if claim is last else None) for claim in (first, stale, newer, last)]
        )
        assert results[0] == CommitResult(hint_wanted=False, proceed=True)
        assert isinstance(results[1], StaleLeaseError)
        assert isinstance(results[2], UnknownFormatError)
        assert results[3] == CommitResult(hint_wanted=True, proceed=True)
        assert [(await ledger.record(claim)).succeeded for claim in (first, stale, last)] == [1, 0, 1]

    run(scenario)


def test_a_script_that_redis_refuses_is_an_error_in_its_place(run):
    """A commit that Redis refuses stands as unavailable among the others, to be sent again."""

    async def scenario(ledger: Ledger) -> None:
        good, broken = [(await ledger.claimed())[0] for _ in range(2)]
        await ledger.redis.set(BatchKeys(broken.ref.batch_id).outcomes, "no stream")
        results = await ledger.chunks.commit_all([(claim, bundle([0]), None) for claim in (broken, good)])
        assert isinstance(results[0], RedisUnavailableError)
        assert isinstance(results[1], CommitResult)

    run(scenario)


def test_a_commit_says_whether_the_batch_goes_on(run):
    """While a batch is paused its holders are told to start no further calls, and it is recorded all the same."""

    async def scenario(ledger: Ledger) -> None:
        (claim,) = await ledger.claimed()
        await ledger.batches.control(claim.ref.batch_id, "paused")
        result = await ledger.chunks.commit(claim, bundle([0]))
        assert result == CommitResult(hint_wanted=False, proceed=False)
        assert (await ledger.record(claim)).succeeded == 1

    run(scenario)


def test_a_chunk_that_was_not_tried_goes_back_as_it_was(run):
    """A released chunk waits for its delay, with attempts, times, spared failures, refusals and deaths as claimed."""

    async def scenario(ledger: Ledger) -> None:
        (claim,) = await ledger.claimed()
        known: dict[str, Any] = {
            "attempts": {0: 2}, "not_before_ms": {0: 5, 1: 6}, "spared": {1: 3}, "throttles": {2: Throttles(4, 7)},
        }  # fmt: skip
        await ledger.chunks.commit(claim, bundle([]), Finish(deaths=2, **known))
        again = await ledger.claim(claim.ref)
        await ledger.chunks.release(again, 50_000)
        assert await ledger.chunks.claim(claim.ref) == "waiting"
        await ledger.redis.zadd(keys.DUE, {claim.ref.member: 0}, xx=True)
        last = await ledger.claim(claim.ref)
        assert {name: getattr(last, name) for name in known} == known
        assert (last.deaths, last.claims, last.count, last.batch_name) == (2, 2, JOBS, "nightly")

    run(scenario)


def test_a_claim_tells_what_is_left_and_when(run):
    """A claim has the jobs that are recorded, the time of Redis, and the batch's deadline where there is one."""

    async def scenario(ledger: Ledger) -> None:
        now_ms = await ledger.batches.now_ms()
        refs = await ledger.submit(deadline_ms=now_ms + 60_000)
        claim = await ledger.claim(refs[0])
        assert (claim.recorded, claim.deadline_ms, claim.claims, claim.suspect) == (
            frozenset(),
            now_ms + 60_000,
            0,
            None,
        )
        assert 0 <= claim.now_ms - now_ms < 10_000
        await ledger.chunks.commit(claim, bundle([0, 2]), Finish())
        again = await ledger.claim(refs[0])
        assert again.recorded == {0, 2}
        assert (await ledger.claimed())[0].deadline_ms is None

    run(scenario)


@pytest.mark.parametrize("offset", [None, 0, 2, -1])
def test_what_runs_alone_is_told_with_its_deaths(run, offset):
    """What a worker noted before it died comes with the next claim; a worker that lost its lease notes nothing."""

    async def scenario(ledger: Ledger) -> None:
        (claim,) = await ledger.claimed()
        await ledger.chunks.note_alone(claim, offset)
        await ledger.redis.zadd(keys.DUE, {claim.ref.member: 0}, xx=True)
        again = await ledger.claim(claim.ref)
        assert (again.suspect, again.deaths) == (Suspect(offset, 1), 1)
        with pytest.raises(StaleLeaseError):
            await ledger.chunks.note_alone(claim, offset)

    run(scenario)


def test_the_ten_slowest_jobs_are_kept_however_they_come(run):
    """A batch's slowest jobs are known by position and id, from several bundles as from one, and none of another."""

    async def scenario(ledger: Ledger) -> None:
        slow, fast = [(await ledger.claimed(jobs=40))[0] for _ in range(2)]
        for claim, unit_us in ((slow, 1000), (fast, 1)):
            for first in range(4):
                made = Bundle()
                for at in range(first, 40, 4):
                    job_id = f"id-{at}" if at % 2 else None
                    latency_us = unit_us * (1 + at * 7 % 40)
                    made.add(at, WireOutcome(at, job_id, 200, b"", {}, None, None, 1, 0, latency_us))
                await ledger.chunks.commit(claim, made)
            positions = {1 + at * 7 % 40: at for at in range(40)}
            assert await ledger.slowest(claim) == {
                (f"{at} id-{at}" if at % 2 else f"{at}").encode(): unit_us * rank
                for rank, at in positions.items()
                if rank > 30
            }

    run(scenario)


def test_only_what_is_slower_than_the_known_ones_is_told(run):
    """With a bundle go its slowest jobs, ten at most, the slowest first; none that the floor already excludes."""

    async def scenario(ledger: Ledger) -> None:
        (claim,) = await ledger.claimed()
        made = bundle(range(15), latency_us=100)

        def told(floor_us: int) -> Any:
            arguments = msgspec.msgpack.decode(commit_call(claim, made, None, floor_us).arguments[0])
            return [tuple(job.values()) for job in arguments["slowest"]]

        assert told(0) == [(100 + at, str(at)) for at in range(14, 4, -1)]
        assert told(112) == [(114, "14"), (113, "13")]
        assert told(114) == []

    run(scenario)


def test_failures_are_counted_by_cause(run):
    """The causes of a bundle's failed jobs are counted with it, those of its successes are none."""

    async def scenario(ledger: Ledger) -> None:
        (claim,) = await ledger.claimed()
        await ledger.chunks.commit(claim, bundle([0, 1, 2], [0, 2]))
        assert await ledger.batches.error_counters(claim.ref.batch_id) == {b"http_500": b"2"}

    run(scenario)


def test_latencies_are_counted_once_per_call(run):
    """Every latency of a bundle is in the batch's distribution, those of failed calls too."""

    async def scenario(ledger: Ledger) -> None:
        (claim,) = await ledger.claimed()
        await ledger.chunks.commit(claim, bundle([0, 1], [1], latency_us=2_000_000))
        assert sum(map(int, await ledger.redis.hvals(BatchKeys(claim.ref.batch_id).latency))) == 2

    run(scenario)


async def put_in(ledger: Ledger, members: dict[str, float]) -> None:
    """Have somebody look at these chunks."""
    await ledger.redis.zadd(keys.DUE, members)


def test_chunks_of_a_newer_format_hide_no_others(run):
    """Many due chunks that only a newer Callmill can take are told, and keep none of the others from being put back."""

    async def scenario(ledger: Ledger) -> None:
        claims = await ledger.claimed(4)
        await put_in(ledger, {f"n{number}/0/{NEWER}": 1 for number in range(12)})
        for claim in claims:
            await put_in(ledger, {claim.ref.member: 2})
        found = await ledger.chunks.requeue_due(limit=5)
        assert sorted(found.put_back) == sorted(claim.ref for claim in claims)
        assert sorted(found.newer) == sorted(f"n{number}" for number in range(12))
        assert found.not_taken == []
        assert await ledger.redis.zcard(keys.DUE) == 16

    run(scenario)


def test_no_more_is_put_back_at_once_than_asked_for(run):
    """A round puts about so many chunks back as it may, those due for longest first; the next one the others."""

    async def scenario(ledger: Ledger) -> None:
        claims = await ledger.claimed(5)
        for age, claim in enumerate(claims):
            await put_in(ledger, {claim.ref.member: 100 - age})
        rounds = [await ledger.chunks.requeue_due(limit=2) for _ in range(3)]
        by_age = [claim.ref for claim in reversed(claims)]
        assert [found.put_back for found in rounds] == [by_age[:2], by_age[2:4], by_age[4:]]

    run(scenario)


def test_a_due_chunk_of_a_batch_that_became_newer_is_told(run):
    """A chunk whose line does not tell that its batch is newer is told, and does not keep the others."""

    async def scenario(ledger: Ledger) -> None:
        newer, claim = [(await ledger.claimed())[0] for _ in range(2)]
        await ledger.redis.hset(BatchKeys(newer.ref.batch_id).meta, "format", FORMAT + 1)
        await put_in(ledger, {newer.ref.member: 1, claim.ref.member: 2})
        found = await ledger.chunks.requeue_due()
        assert (found.put_back, list(found.newer)) == ([claim.ref], [newer.ref.batch_id])

    run(scenario)


def test_chunks_in_hand_are_not_stranded(run):
    """Chunks queued for long are stranded, so many of each line as asked for, but for those whose hints are in hand."""

    async def scenario(ledger: Ledger) -> None:
        refs = await ledger.submit(4)
        assert await ledger.chunks.stranded(["api", "other"], 60_000) == []
        await ledger.redis.zadd(keys.queued("api"), {ref.member: number for number, ref in enumerate(refs)})
        await ledger.chunks.touch([])
        await ledger.chunks.touch([refs[1]])
        assert await ledger.chunks.stranded(["other", "api"], 60_000, limit=2) == [refs[0], refs[2]]
        assert await ledger.chunks.stranded(["api"], 60_000) == [refs[3]]
        assert await ledger.chunks.stranded([], 0) == []

    run(scenario)


def test_a_renewal_lengthens_every_lease_that_still_holds(run):
    """One script renews all leases of a process; the answer has a word for each, in their order."""

    async def scenario(ledger: Ledger) -> None:
        first, lost, paused = [(await ledger.claimed())[0] for _ in range(3)]
        await put_in(ledger, {first.ref.member: 1, paused.ref.member: 1, lost.ref.member: 1})
        await ledger.claim(lost.ref)
        await ledger.batches.control(paused.ref.batch_id, "paused")
        held_until_ms = await ledger.redis.zscore(keys.DUE, lost.ref.member)
        names, arguments = ledger.chunks.renewal([first, lost, paused])
        now_ms = await ledger.batches.now_ms()
        answer = await ledger.session.run(Call(RENEW, names, arguments))
        assert (answer[0], answer[1]) == (1, 0)
        assert answer[2] not in {0, 1}
        for claim in (first, paused):
            assert 0 <= await ledger.redis.zscore(keys.DUE, claim.ref.member) - now_ms - 60_000 < 10_000
        assert await ledger.redis.zscore(keys.DUE, lost.ref.member) == held_until_ms

    run(scenario)
