"""Failures in the ledger: what is kept of a failed job, for how long, and what running it again makes of it."""

from __future__ import annotations

import asyncio
import struct
import time

import pytest

from callmill.config.redis_connections import connect
from callmill.errors import StaleLeaseError
from callmill.jobs import FailedJob
from callmill.jobs.outcome import UNKNOWN_INDEX
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
    Requeued,
    Throttles,
    keys,
)
from callmill.ledger.bitmaps import bitmap_of
from callmill.ledger.failure_filter import ALL, FailureFilter
from callmill.ledger.failure_records import encode_failure
from callmill.ledger.failures import ChunkFailures
from callmill.ledger.keys import BatchKeys

JOBS = 12


def outcome(index: int, status: int | None = 200, body: bytes = b"", **fields: object) -> WireOutcome:
    """Return an outcome; without a status, a call that timed out."""
    code = None if status == 200 else "timeout" if status is None else f"http_{status}"
    values = {"attempts": 3, "headers": {}, "message": code} | fields
    return WireOutcome(
        index, None, status, body, values["headers"], code, values["message"], values["attempts"], 1_000, 2_000_000
    )


class Ledger:
    """One batch of one chunk."""

    def __init__(self, redis_url: str) -> None:
        self.redis = connect(redis_url)
        session = LedgerSession(self.redis)
        self.batches = Batches(session)
        self.chunks = Chunks(session, worker="w")
        self.ref = ChunkRef("", 0, "api")
        self.keys = BatchKeys("")

    async def begin(self, jobs: int = JOBS, *, sealed: bool = True) -> Claim:
        """Submit and claim."""
        batch_id = await self.batches.create("", retention_ms=60_000)
        payload = encode_chunk(Chunk("api", 0, [WireJob("GET", "/")] * jobs))
        await self.batches.add(batch_id, 0, [("api", payload)], park=False)
        if sealed:
            await self.batches.seal(batch_id)
        self.ref, self.keys = ChunkRef(batch_id, 0, "api"), BatchKeys(batch_id)
        return await self.claim()

    async def claim(self) -> Claim:
        """Claim what must be there to be claimed."""
        claim = await self.chunks.claim(self.ref)
        assert isinstance(claim, Claim)
        return claim

    async def record(self, claim: Claim, *outcomes: WireOutcome, finish: Finish | None = None) -> None:
        """Record these outcomes."""
        await self.chunks.commit(claim, Bundle(outcomes=[(item.index, item) for item in outcomes]), finish)

    async def retry(self, where: str = "") -> int:
        """Run failed jobs again."""
        return (await self.batches.retry_failed(self.ref.batch_id, FailureFilter(where)))[0]

    async def failed(self, where: str = "") -> dict[int, FailedJob]:
        """Return the failed jobs by index."""
        pages = self.batches.failures.jobs(self.ref.batch_id, FailureFilter(where))
        return {job.index: job async for page in pages for job in page}

    async def retried(self) -> dict[int, FailedJob]:
        """Return those that failed and were run again, by index."""
        pages = self.batches.failures.retried(self.ref.batch_id, ALL)
        return {job.index: job async for page in pages for job in page}

    async def counters(self) -> tuple[int, int, bool]:
        """Return what the batch counts."""
        record = await self.batches.record(self.ref.batch_id)
        return record.succeeded, record.failed, record.ended


@pytest.fixture
def run(redis_url):
    """Run a scenario on a ledger of its own."""

    def run_scenario(scenario) -> None:
        async def main() -> None:
            ledger = Ledger(redis_url)
            try:
                await scenario(ledger)
            finally:
                await ledger.redis.aclose()

        asyncio.run(main())

    return run_scenario


def test_failure_outlives_its_outcome(run):
    """Reason, attempts and the beginning of the last answer stay when the outcome has left Redis, in few bytes."""

    async def scenario(ledger: Ledger) -> None:
        claim = await ledger.begin(3)
        before = time.time()
        headers = {"x-request-id": "r" * 1000}
        broken = outcome(1, 500, "ä".encode() * 2_000_000, headers=headers, message="m" * 10_000)
        await ledger.record(claim, outcome(0), broken, outcome(2, None, attempts=0), finish=Finish())
        await ledger.redis.xtrim(ledger.keys.outcomes, maxlen=0, approximate=False)
        jobs = await ledger.failed()
        assert set(jobs) == {1, 2}
        assert all(job.failed and len(job.failures) == 1 for job in jobs.values())
        assert (jobs[1].id, jobs[1].api) == (f"{ledger.ref.batch_id}-1", "api")
        last = jobs[1].last
        assert (last.cause, last.code, last.status, last.attempts) == ("http_500", "http_500", 500, 3)
        assert (last.answer, last.answer_bytes) == ("ä" * 256, 4_000_000)
        assert (len(last.message), last.request_id) == (500, "r" * 128)
        assert (last.started_at, last.latency) == (1.0, 2.0)
        assert before - 60 < last.failed_at < time.time() + 60
        assert (jobs[2].last.cause, jobs[2].last.status, jobs[2].last.answer) == ("timeout", None, "")
        assert await ledger.redis.memory_usage(ledger.keys.failures) < 3_000

    run(scenario)


def test_success_costs_nothing(run):
    """A batch without a failed job has no key for failures."""

    async def scenario(ledger: Ledger) -> None:
        await ledger.record(await ledger.begin(2), outcome(0), outcome(1), finish=Finish())
        assert await ledger.redis.exists(ledger.keys.failures, ledger.keys.failed) == 0
        assert await ledger.batches.failures.causes(ledger.ref.batch_id, ALL) == []

    run(scenario)


def test_causes(run):
    """What failed alike is one cause with its count, its times and the job that failed last, the largest first."""

    async def scenario(ledger: Ledger) -> None:
        claim = await ledger.begin()
        await ledger.record(claim, outcome(0, 500), outcome(1, None), outcome(2, 500, b"first"))
        await ledger.record(claim, outcome(3, 500, b"last"), *map(outcome, range(4, JOBS)), finish=Finish())
        causes = await ledger.batches.failures.causes(ledger.ref.batch_id, ALL)
        assert [(cause.cause, cause.count, cause.status) for cause in causes] == [
            ("http_500", 3, 500),
            ("timeout", 1, None),
        ]
        assert (causes[0].example.index, causes[0].example.last.answer) == (3, "last")
        assert causes[0].first_at <= causes[0].last_at == causes[0].example.last.failed_at
        (cause,) = await ledger.batches.failures.causes(ledger.ref.batch_id, FailureFilter("code=timeout"))
        assert cause == causes[1]

    run(scenario)


def test_history_is_kept(run):
    """Each run adds what it failed of, the newest last, at most ten; a job that succeeds keeps it and is not failed."""

    async def scenario(ledger: Ledger) -> None:
        claim = await ledger.begin(2)
        for number in range(13):
            at = (0, 1) if number == 0 else (1,)
            await ledger.record(claim, *(outcome(n, 500 + number, b"%d" % number) for n in at), finish=Finish())
            assert await ledger.retry(f"status={500 + number},id={ledger.ref.batch_id}-1") == 1
            history = [failure.status for failure in (await ledger.retried())[1].failures]
            assert history == [500 + n for n in range(number + 1)][-10:]
            claim = await ledger.claim()
        await ledger.record(claim, outcome(1), finish=Finish())
        assert await ledger.counters() == (1, 1, True)
        assert set(await ledger.failed()) == {0}
        job = (await ledger.retried())[1]
        assert [job.failed, job.failures[0].answer, job.last.answer] == [False, "3", "12"]

    run(scenario)


@pytest.mark.parametrize("place", ["done", "queued", "waiting", "parked"])
def test_some_run_again_wherever_their_chunk_is(run, place):
    """Of a chunk that nobody holds, the jobs meant run again as if for the first time; the others stay failed."""

    async def scenario(ledger: Ledger) -> None:
        claim = await ledger.begin(9)
        attempts, times, spared = {0: 2, 1: 2, 7: 4}, {1: 1, 7: 5}, {1: 3, 7: 6}
        refused = {1: Throttles(3, 2**41), 7: Throttles(7, 2**41 + 1)}
        await ledger.chunks.commit(claim, Bundle(), Finish(0, attempts, times, spared, refused))
        claim = await ledger.claim()
        last = 9 if place == "done" else 7
        outcomes = [outcome(0, 500), outcome(1, 503), *map(outcome, range(2, last))]
        delay_ms = 60_000 if place == "waiting" else 0
        if place == "parked":
            await ledger.batches.control(ledger.ref.batch_id, "paused")
        if place == "queued":  # its worker died: what it knew of attempts is as before
            await ledger.record(claim, *outcomes)
            await ledger.redis.zadd(keys.DUE, {ledger.ref.member: 0}, xx=True)
            assert await ledger.chunks.requeue_due() == Requeued(put_back=[ledger.ref])
        else:
            finish = Finish(delay_ms, {7: 4}, {7: 5}, {7: 6}, {7: Throttles(7, 2**41 + 1)})
            await ledger.record(claim, *outcomes, finish=finish)
        assert await ledger.retry("status=503") == 1
        assert await ledger.retry("status=503") == 0
        assert await ledger.counters() == (last - 2, 1, False)
        if place == "parked":
            assert await ledger.chunks.claim(ledger.ref) is ClaimRefused.PAUSED
            await ledger.batches.control(ledger.ref.batch_id, "run")
            assert await ledger.batches.unpark(ledger.ref.batch_id) == [ledger.ref]
        again = await ledger.claim()
        assert again.recorded == set(range(last)) - {1}
        left = {} if place == "done" else {7: 4}
        assert {at: n for at, n in again.attempts.items() if at not in again.recorded} == left
        assert {at: n for at, n in again.not_before_ms.items() if at not in again.recorded} == dict.fromkeys(left, 5)
        assert {at: n for at, n in again.spared.items() if at not in again.recorded} == dict.fromkeys(left, 6)
        assert {at: n for at, n in again.throttles.items() if at not in again.recorded} == dict.fromkeys(
            left, refused[7]
        )
        await ledger.record(again, outcome(1, 500), *map(outcome, range(last, 9)), finish=Finish())
        assert await ledger.counters() == (7, 2, True)
        assert await ledger.chunks.claim(ledger.ref) is ClaimRefused.GONE
        assert {at: len(job.failures) for at, job in (await ledger.failed("status=500")).items()} == {0: 1, 1: 2}

    run(scenario)


def test_jobs_of_a_held_chunk_run_again_afterwards(run):
    """While a worker holds the chunk nothing becomes unrecorded, so that a bundle that comes twice counts once."""

    async def scenario(ledger: Ledger) -> None:
        claim = await ledger.begin(4)
        await ledger.record(claim, outcome(0, 500), outcome(1, 404))
        assert [await ledger.retry("status=500"), await ledger.retry("status=500"), await ledger.retry()] == [1, 0, 1]
        await ledger.record(claim, outcome(0, 500), outcome(1, 404))  # its answer was lost
        assert await ledger.counters() == (0, 2, False)
        await ledger.record(claim, outcome(2), finish=Finish(delay_ms=60_000, attempts={3: 1}))
        assert await ledger.counters() == (1, 0, False)
        again = await ledger.claim()
        assert (again.recorded, again.attempts) == ({2}, {3: 1})
        await ledger.record(again, *map(outcome, (0, 1, 3)), finish=Finish())
        assert await ledger.counters() == (4, 0, True)
        assert await ledger.redis.exists(ledger.keys.rest, ledger.keys.failed, ledger.keys.state) == 0

    run(scenario)


@pytest.mark.parametrize("way", ["finish", "takeover", "requeue", "cancel"])
def test_what_is_wanted_of_a_held_chunk_is_not_forgotten(run, way):
    """Jobs wanted while their chunk was held run again however it is given up, unless their batch is cancelled."""

    async def scenario(ledger: Ledger) -> None:
        claim = await ledger.begin(2)
        await ledger.record(claim, outcome(0, 500), outcome(1, 404))
        assert await ledger.retry("status=500") == 1
        if way == "cancel":
            await ledger.batches.control(ledger.ref.batch_id, "cancelled")
        if way in ("finish", "cancel"):
            await ledger.record(claim, finish=Finish())
        else:
            await ledger.redis.zadd(keys.DUE, {ledger.ref.member: 0}, xx=True)
        if way == "requeue":
            assert await ledger.chunks.requeue_due() == Requeued(put_back=[ledger.ref])
        if way == "cancel":
            assert await ledger.counters() == (0, 2, True)
            return
        again = await ledger.claim()
        assert again.recorded == {1}
        with pytest.raises(StaleLeaseError):
            await ledger.record(claim, outcome(0))
        await ledger.record(again, outcome(0), finish=Finish())
        assert await ledger.counters() == (1, 1, True)

    run(scenario)


def test_failures_live_as_long_as_their_batch(run):
    """They expire with the batch, stay when it is cancelled or goes on, and go when it is deleted."""

    async def scenario(ledger: Ledger) -> None:
        await ledger.record(await ledger.begin(2), outcome(0), outcome(1, 500), finish=Finish())
        assert await ledger.redis.pttl(ledger.keys.failures) > 0
        assert await ledger.retry() == 1
        assert await ledger.redis.pttl(ledger.keys.failures) == -1
        claim = await ledger.claim()
        await ledger.batches.control(ledger.ref.batch_id, "cancelled")
        await ledger.record(claim, outcome(1, 500), finish=Finish())
        assert len((await ledger.failed())[1].failures) == 2
        assert await ledger.redis.pttl(ledger.keys.failures) > 0
        await ledger.batches.delete(ledger.ref.batch_id)
        assert (await ledger.failed(), await ledger.retried()) == ({}, {})
        assert await ledger.redis.keys(f"*{ledger.ref.batch_id}*") == []

    run(scenario)


def test_batches_of_an_earlier_version_run_again(run):
    """Failed jobs of which nothing but the failure itself was recorded can be run again all the same."""

    async def scenario(ledger: Ledger) -> None:
        await ledger.record(await ledger.begin(2), outcome(0), outcome(1, 500), finish=Finish())
        await ledger.redis.delete(ledger.keys.failures)
        assert (await ledger.failed(), await ledger.retry("status=500")) == ({}, 0)
        assert await ledger.retry() == 1
        assert (await ledger.claim()).recorded == {0}

    run(scenario)


def test_answers_are_bounded(run):
    """Behind very many failed jobs of a batch the reasons are kept, and the answers are not."""

    async def scenario(ledger: Ledger) -> None:
        claim = await ledger.begin(2)
        await ledger.record(claim, outcome(0, 500, b"kept"))
        await ledger.redis.hset(ledger.keys.failures, mapping={f"9/{n}": b"" for n in range(100_000)})
        await ledger.record(claim, outcome(1, 500, b"not kept"), finish=Finish())
        jobs = await ledger.failed()
        assert [jobs[0].last.answer, jobs[1].last.answer, jobs[1].last.answer_bytes] == ["kept", "", 8]
        assert jobs[1].last.message == "http_500"

    run(scenario)


def test_every_failed_job_is_found(run):
    """Jobs of many chunks are listed once each, and counted as the batch counts them."""

    async def scenario(ledger: Ledger) -> None:
        batch_id = await ledger.batches.create("", retention_ms=60_000)
        count, jobs = 300, 20
        payloads = [
            ("api", encode_chunk(Chunk("api", number * jobs, [WireJob("GET", "/")] * jobs))) for number in range(count)
        ]
        await ledger.batches.add(batch_id, 0, payloads, park=False)
        await ledger.batches.seal(batch_id)
        expected = set()
        for number in range(count):
            ledger.ref = ChunkRef(batch_id, number, "api")
            outcomes = [
                (at, outcome(number * jobs + at, 500 if at % 3 == 0 and number % 5 else 200)) for at in range(jobs)
            ]
            expected |= {item.index for _, item in outcomes if item.status == 500}
            await ledger.chunks.commit(await ledger.claim(), Bundle(outcomes=outcomes), Finish())
        pages = ledger.batches.failures.jobs(batch_id, ALL)
        listed = [job.index async for page in pages for job in page]
        assert sorted(listed) == sorted(expected)
        (cause,) = await ledger.batches.failures.causes(batch_id, ALL)
        assert cause.count == (await ledger.batches.record(batch_id)).failed == len(expected)
        jobs_again, refs = await ledger.batches.retry_failed(batch_id, FailureFilter("status=5xx"))
        assert (jobs_again, len(refs)) == (len(expected), count - count // 5)
        retried = ledger.batches.failures.retried(batch_id, ALL)
        assert sorted([job.index async for page in retried for job in page]) == sorted(expected)

    run(scenario)


def test_jobs_of_a_damaged_chunk_do_not_run_again(run):
    """Jobs that failed because their chunk cannot be read are listed, and left alone by every retry."""

    async def scenario(ledger: Ledger) -> None:
        claim = await ledger.begin(2)
        lost = [(at, outcome(UNKNOWN_INDEX, None)) for at in range(2)]
        await ledger.chunks.commit(claim, Bundle(outcomes=lost), Finish())
        assert len(await ledger.failed()) == 1  # they share their position, as nobody knows it
        assert [await ledger.retry(), await ledger.retry("code=timeout")] == [0, 0]
        assert await ledger.counters() == (0, 2, True)

    run(scenario)


def test_of_a_chunk_only_the_jobs_meant_are_listed(run):
    """A condition leaves out other jobs of the chunk, chunks without such jobs, and those that ran again otherwise."""

    async def scenario(ledger: Ledger) -> None:
        claim = await ledger.begin(4)
        await ledger.record(
            claim, *(outcome(at, status) for at, status in enumerate((500, 404, 500, 200))), finish=Finish()
        )
        assert set(await ledger.failed("status=404")) == {1}
        assert await ledger.failed("status=503") == {}
        assert await ledger.retry("status=404") == 1
        where = FailureFilter("status=500")
        pages = ledger.batches.failures.retried(ledger.ref.batch_id, where)
        assert [page async for page in pages] == []
        assert (set(await ledger.retried()), set(await ledger.failed())) == ({1}, {0, 2})

    run(scenario)


def test_a_batch_whose_chunks_are_gone_has_nothing_to_run_again(run):
    """Where neither a failure nor the payload of a chunk is left, as when it was deleted meanwhile, it is left out."""

    async def scenario(ledger: Ledger) -> None:
        claim = await ledger.begin(2)
        await ledger.record(claim, outcome(0, 500), outcome(1), finish=Finish())
        await ledger.redis.unlink(ledger.keys.failures)
        chunks = [chunk async for chunk in ledger.batches.failures.chunks(ledger.ref.batch_id, ALL)]
        assert chunks == [ChunkFailures(0, "api", b"")]
        assert await ledger.failed() == {}
        await ledger.redis.unlink(ledger.keys.chunks)
        assert [chunk async for chunk in ledger.batches.failures.chunks(ledger.ref.batch_id, ALL)] == []

    run(scenario)


def test_causes_tell_their_span_and_come_in_order(run):
    """Of equally many the API's name decides, then the cause; each tells its first and last time, and latest job."""

    async def scenario(ledger: Ledger) -> None:
        await ledger.begin(6)
        written = [("erp", 500, 30.0), ("crm", 500, 20.0), ("crm", 404, 50.0), ("erp", 500, 10.0), ("erp", 500, 20.0)]
        for at, (api, status, failed_s) in enumerate(written):
            sent = encode_failure(api, outcome(at, status))
            head, answer = struct.unpack(">IH", sent[:6])
            record = struct.pack(">IHd", head, answer, failed_s * 1000) + sent[6:]
            await ledger.redis.hset(ledger.keys.failures, f"0/{at}", record)
        await ledger.redis.hset(ledger.keys.failed, "0", bitmap_of(range(5)))
        causes = await ledger.batches.failures.causes(ledger.ref.batch_id, ALL)
        assert [(cause.api, cause.cause, cause.count, cause.first_at, cause.last_at) for cause in causes] == [
            ("erp", "http_500", 3, 10.0, 30.0),
            ("crm", "http_404", 1, 50.0, 50.0),
            ("crm", "http_500", 1, 20.0, 20.0),
        ]
        assert (causes[0].example.index, causes[0].code, causes[0].status) == (0, "http_500", 500)

    run(scenario)


def test_a_scan_that_comes_by_twice_lists_nothing_twice(run):
    """Redis may name a field of a hash twice while that grows: each job is listed once all the same."""

    class Twice:
        """A Redis whose scans show everything twice."""

        def __init__(self, redis) -> None:
            self.hmget, self._hscan = redis.hmget, redis.hscan

        async def hscan(self, key: str, cursor: int, count: int):
            """Show everything, and once more."""
            _, page = await self._hscan(key, 0, count=count)
            return (0 if cursor else 1), page

    async def scenario(ledger: Ledger) -> None:
        claim = await ledger.begin(JOBS)
        await ledger.record(claim, *(outcome(at, 500) for at in range(JOBS)), finish=Finish())
        again = {f"id={ledger.ref.batch_id}-{at}" for at in (1, 3, 8, 9)}
        assert sum([await ledger.retry(where) for where in again]) == 4
        failures = ledger.batches.failures
        failures._redis = Twice(ledger.redis)
        listed = [job.index async for page in failures.jobs(ledger.ref.batch_id, ALL) for job in page]
        assert sorted(listed) == [0, 2, 4, 5, 6, 7, 10, 11]
        listed = [job.index async for page in failures.retried(ledger.ref.batch_id, ALL) for job in page]
        assert sorted(listed) == [1, 3, 8, 9]

    run(scenario)
