"""What is shown of a batch: exact, bounded, and read at a cost that does not grow with its jobs."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import asynccontextmanager

import pytest

from callmill.cli.run_report import RunReport
from callmill.config.redis_connections import connect
from callmill.errors import BatchNotFoundError
from callmill.jobs.wire import Chunk, WireJob, WireOutcome, encode_chunk
from callmill.ledger import Batches, BatchState, Bundle, ChunkRef, Chunks, Claim, Finish, LedgerSession
from callmill.ledger.failure_filter import FailureFilter
from callmill.ledger.gone import forget_gone
from callmill.ledger.keys import BatchKeys
from callmill.overview.reader import Overview
from callmill.workers.alert_texts import of_end

MANY = 500


class Shown:
    """A ledger, one batch of one chunk that a worker holds, and what is shown of it."""

    def __init__(self, redis_url: str) -> None:
        self.redis = connect(redis_url)
        session = LedgerSession(self.redis)
        self.batches = Batches(session)
        self.chunks = Chunks(session, worker="w", lease_ms=600_000)
        self.overview = Overview(session, self.redis)

    async def begin(self, jobs: int = MANY, name: str = "") -> None:
        """Submit a batch, in a millisecond of its own, which is what batches are ordered by, and claim its chunk."""
        before_ms = await self.now_ms()
        while await self.now_ms() == before_ms:
            pass
        self.id = await self.batches.create(name, retention_ms=60_000)
        self.names = BatchKeys(self.id)
        payload = encode_chunk(Chunk("api", 0, [WireJob("GET", "/")] * jobs))
        await self.batches.add(self.id, 0, [("api", payload)], park=False)
        await self.batches.seal(self.id)
        await self.claim()

    async def now_ms(self) -> int:
        """Return Redis's time."""
        seconds, microseconds = await self.redis.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def claim(self) -> None:
        """Claim the chunk."""
        claim = await self.chunks.claim(ChunkRef(self.id, 0, "api"))
        assert isinstance(claim, Claim)
        self.held = claim

    async def record(self, outcomes: list[WireOutcome], finish: Finish | None = None, *, retries: int = 0) -> None:
        """Record some jobs in one bundle, each made in one call."""
        bundle = Bundle(
            outcomes=[(item.index, item) for item in outcomes],
            latencies_us=[item.latency_us for item in outcomes],
            calls=len(outcomes) + retries,
            retries=retries,
        )
        await self.chunks.commit(self.held, bundle, finish)

    async def age(self, seconds: int) -> None:
        """Let the batch be older by whole seconds."""
        await self.redis.hincrby(self.names.meta, "created_ms", -seconds * 1000)
        await self.redis.delete(self.names.rate)


@asynccontextmanager
async def shown(redis_url: str):
    """Open it for one test."""
    made = Shown(redis_url)
    try:
        yield made
    finally:
        await made.redis.aclose()


def good(index: int, latency_us: int = 1000, job_id: str | None = None) -> WireOutcome:
    """Return a success."""
    return WireOutcome(index, job_id, 200, b"", {}, None, None, 1, 0, latency_us)


def bad(index: int, code: str = "http_500", status: int | None = 500) -> WireOutcome:
    """Return a failure."""
    return WireOutcome(index, None, status, b"", {}, code, code, 1, 0, 1000)


@pytest.mark.parametrize("seed", range(4))
def test_a_history_is_exact_whatever_its_steps_have_become(redis_url, seed):
    """Every point has just what was recorded in its step, also where steps were merged; there are 240 at most."""
    rnd = random.Random(seed)

    async def scenario() -> None:
        async with shown(redis_url) as look:
            await look.begin()
            aged, done, recorded = 0, 0, []
            while done < MANY:
                pause = rnd.choice([0, 0, 1, 3, 60, 400, 5000]) if done else 0
                await look.age(pause)
                jobs = min(MANY - done, rnd.randint(1, 40))
                aged += pause
                took_us = rnd.choice([1000, 100_000])
                await look.record([good(done + at, took_us) for at in range(jobs)], retries=rnd.randint(0, 2))
                done += jobs
                recorded.append((aged, jobs, took_us))
            view = await look.overview.batch(look.id)
            step_s = int(view.step_s)
            # The test itself takes time: what was recorded at the very end of a step may be in the next one.
            expected = Counter[int]()
            for at, jobs, _ in recorded:
                expected[at // step_s] += jobs
            found = [point.succeeded for point in view.history]
            assert len(found) <= 240
            assert sum(found) == MANY
            assert sum(point.calls for point in view.history) == view.progress.calls
            assert sum(point.retries for point in view.history) == view.progress.retries
            if step_s > 16:  # where the seconds that the test took move nothing out of its step
                assert {at: jobs for at, jobs in enumerate(found) if jobs} == dict(expected)
            assert len(await look.redis.hgetall(look.names.history)) <= 241

    asyncio.run(scenario())


def test_a_point_tells_the_mean_latency_of_its_step(redis_url):
    """The mean latency of a step is that of the calls recorded in it, within 2.5 %."""

    async def scenario() -> None:
        async with shown(redis_url) as look:
            await look.begin()
            await look.record([good(at, 20_000) for at in range(50)])
            await look.age(10)
            await look.record([good(at, 400_000) for at in range(50, 60)])
            means = [point.latency_s for point in (await look.overview.batch(look.id)).history if point.succeeded]
            assert means == [pytest.approx(0.02, rel=0.025), pytest.approx(0.4, rel=0.025)]

    asyncio.run(scenario())


def test_errors_are_the_jobs_that_failed_now(redis_url):
    """A cause counts the jobs that count as failed: who runs again leaves it until it fails again."""

    async def scenario() -> None:
        async with shown(redis_url) as look:
            await look.begin(8)
            timeouts = [bad(at, "timeout", None) for at in (0, 1, 2)]
            await look.record([*timeouts, *map(bad, (3, 4)), bad(5, "too_large", 200), good(6), good(7)], Finish())
            assert await errors(look) == [("timeout", 3), ("http_500", 2), ("too_large/200", 1)]
            again, _ = await look.batches.retry_failed(look.id, FailureFilter("code=timeout"))
            assert (again, await errors(look)) == (3, [("http_500", 2), ("too_large/200", 1)])
            await look.claim()
            await look.record([good(0), bad(1), bad(2, "timeout", None)], Finish())
            assert await errors(look) == [("http_500", 3), ("timeout", 1), ("too_large/200", 1)]
            again, _ = await look.batches.retry_failed(look.id)
            assert (again, await errors(look)) == (5, [])

    asyncio.run(scenario())


def test_errors_are_bounded(redis_url):
    """Of very many causes the first 64 are counted by themselves and the others together; none is counted twice."""

    async def scenario() -> None:
        async with shown(redis_url) as look:
            await look.begin(200)
            await look.record([bad(at, f"code_{at % 100}", None) for at in range(200)], Finish())
            found = dict(await errors(look))
            assert (len(found), found["other"], sum(found.values())) == (65, 72, 200)
            await look.batches.retry_failed(look.id)
            assert await errors(look) == []

    asyncio.run(scenario())


def test_what_an_older_version_recorded_is_shown_as_far_as_it_is_known(redis_url):
    """Failures whose causes nobody counted are other ones, also when some are run again; the history still sums up."""

    async def scenario() -> None:
        async with shown(redis_url) as look:
            await look.begin(6)
            await look.record([bad(0), bad(1), good(2)])
            await look.redis.delete(look.names.history, look.names.errors, look.names.slowest)
            assert await errors(look) == [("other", 2)]
            await look.record([bad(3), good(4), good(5)], Finish())
            assert await errors(look) == [("http_500", 1), ("other", 2)]
            await look.batches.retry_failed(look.id, FailureFilter("status=500"))
            assert await errors(look) == []
            assert sum(point.succeeded for point in (await look.overview.batch(look.id)).history) == 3

    asyncio.run(scenario())


def test_the_slowest_jobs_are_the_slowest(redis_url):
    """The ten jobs whose recorded calls took longest are kept, with the ids that the producer gave."""
    rnd = random.Random(5)

    async def scenario() -> None:
        async with shown(redis_url) as look:
            await look.begin()
            outcomes = [good(at, rnd.randint(1, 10**7), f"row {at}" if at % 2 else None) for at in range(MANY)]
            for at in range(0, MANY, 20):
                await look.record(outcomes[at : at + 20])
            expected = sorted(outcomes, key=lambda item: -item.latency_us)[:10]
            assert [(job.index, job.id, job.latency_s) for job in (await look.overview.batch(look.id)).slowest] == [
                (item.index, item.id or f"{look.id}-{item.index}", item.latency_us / 1e6) for item in expected
            ]
            assert await look.redis.zcard(look.names.slowest) == 10

    asyncio.run(scenario())


def test_pages_show_every_batch_once(redis_url):
    """Pages have all batches, the newest first, of all states or of one; workers forget what is gone."""

    async def scenario() -> None:
        async with shown(redis_url) as look:
            for at in range(5):
                await look.begin(1, f"batch {at}")
                if at % 2:
                    await look.record([good(0)], Finish())
            pages = [await look.overview.batches(offset, 2) for offset in (0, 2, 4)]
            assert [row.name for page in pages for row in page.rows] == [f"batch {at}" for at in (4, 3, 2, 1, 0)]
            assert {page.total for page in pages} == {5}
            done = await look.overview.batches(state=BatchState.DONE)
            assert ([row.name for row in done.rows], done.total) == (["batch 3", "batch 1"], 2)
            assert (await look.overview.batches(1, 1, BatchState.DONE)).rows == done.rows[1:]
            await look.redis.delete(BatchKeys(done.rows[0].id).meta)
            assert len((await look.overview.batches()).rows) == 4
            await forget_gone(LedgerSession(look.redis))
            assert (await look.overview.batches()).total == 4
            with pytest.raises(BatchNotFoundError, match="no batch"):
                await look.overview.batch(done.rows[0].id)

    asyncio.run(scenario())


async def errors(look: Shown) -> list[tuple[str, int]]:
    """Return causes and how many jobs each has."""
    return [(error.cause, error.jobs) for error in (await look.overview.batch(look.id)).errors]


def test_a_batch_that_ran_again_is_timed_from_then(redis_url):
    """Time and rate of a batch whose failed jobs ran again after it was over are those of the jobs that ran again."""

    async def scenario() -> None:
        async with shown(redis_url) as look:
            await look.begin(10)
            await look.record([good(0)])
            await look.record([bad(1)])
            await look.batches.retry_failed(look.id)
            await look.record([*(good(at) for at in range(2, 7)), *(bad(at) for at in range(7, 10))], Finish())
            await look.claim()
            await look.record([bad(1)], Finish())
            await look.age(86_400)
            before = (await look.overview.batch(look.id)).progress
            assert before.ended
            assert 86_400 <= before.elapsed < 86_500
            assert before.mean_rate == pytest.approx(10 / before.elapsed)
            await look.batches.retry_failed(look.id, FailureFilter(""))
            await look.claim()
            await look.record([good(1), good(7)])
            while not (running := (await look.overview.batch(look.id)).progress).elapsed:
                pass  # less than a millisecond has passed: there is no rate yet
            await look.record([good(8), bad(9)], Finish())
            after = (await look.overview.batch(look.id)).progress
            assert (running.ended, after.ended, after.succeeded) == (False, True, 9)
            assert running.elapsed <= after.elapsed < 100
            assert running.mean_rate == pytest.approx(2 / running.elapsed)
            assert after.mean_rate == pytest.approx(4 / after.elapsed)
            assert RunReport.of(after).rate_per_s == after.mean_rate
            assert of_end(await look.batches.record(look.id)).text.endswith((" s", " ms"))

    asyncio.run(scenario())
