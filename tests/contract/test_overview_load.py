"""The load of a fleet as it is read from Redis: what waits, and who may not call for long."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from callmill.config.public_api import PublicApi
from callmill.config.redis_connections import connect
from callmill.jobs.line import Line
from callmill.jobs.traffic import Priority, TrafficClass
from callmill.jobs.wire import Chunk, WireJob, encode_chunk
from callmill.ledger import Batches, Bundle, ChunkRef, Chunks, Finish, LedgerSession
from callmill.ledger.fleet import Counts, Fleet, KeyStatus, LaneStatus, WorkerStatus
from callmill.limits.control import LimitControl
from callmill.overview.reader import Overview
from callmill.overview.workers_wanted import ScalingRules, workers_wanted

CRM = PublicApi(name="crm", base_url="https://crm.test", limits=("600/minute", "10000/day", "50 concurrent"))
CRM_LINE = Line("crm")
LANE = LaneStatus(api="crm", in_flight=0, waiting=0, most_in_flight=500)
WORKER = WorkerStatus(
    id="w", host="h", pid=1, started_ms=0, calls=0, cpu_s=0.0, draining=False, apis=["crm"], lanes=[LANE],
    calls_per_s=10.0, cpu_us_per_call=150.0, chunks_at_once=8,
)  # fmt: skip


class Site:
    """A ledger with one API, and what is read of it."""

    def __init__(self, redis) -> None:
        self.redis = redis
        session = LedgerSession(redis)
        self.fleet, self.batches = Fleet(session), Batches(session)
        self.chunks = Chunks(session, worker="w", lease_ms=60_000)
        self.overview = Overview(session, redis)

    async def submit(self, chunks: int, jobs: int, line: Line = CRM_LINE) -> str:
        """Submit a batch of so many chunks with so many jobs each."""
        batch_id = await self.batches.create("", retention_ms=60_000, traffic=line.traffic)
        payload = encode_chunk(Chunk("crm", 0, [WireJob("GET", "/")] * jobs))
        await self.batches.add(batch_id, 0, [(str(line), payload)] * chunks, park=False)
        await self.batches.seal(batch_id)
        return batch_id

    async def crm(self):
        """Return the load of the API."""
        (api,) = (await self.overview.load()).apis
        return api

    async def wanted(self) -> int:
        """Return how many workers are wanted."""
        return workers_wanted(await self.overview.load(), ScalingRules()).wanted


@pytest.fixture
def run(redis_url):
    """Run a scenario on an empty Redis in which a worker announced an API once."""

    def runs(scenario, *apis) -> None:
        async def main() -> None:
            async with connect(redis_url) as redis:
                site = Site(redis)
                await site.fleet.announce_apis(apis)
                await scenario(site)

        asyncio.run(main())

    return runs


def test_backlog_is_told_in_jobs(run):
    """Chunks of every line of an API count with the jobs that have no outcome yet, also when nobody works."""

    async def scenario(site: Site) -> None:
        assert await site.wanted() == 0
        await site.submit(40, 25)
        await site.submit(2, 10, Line("crm", TrafficClass(Priority.BULK, "acme")))
        crm = await site.crm()
        # 22 chunks were looked at, 20 of the first line.
        assert crm.waiting == pytest.approx(42 * (20 * 25 + 2 * 10) / 22)
        assert (crm.limit, crm.limit_per_s) == ("600/minute", 10.0)
        assert crm.calls_at_once == 50
        assert await site.wanted() == 1

    run(scenario, CRM)


def test_what_workers_hold_counts_once(run):
    """A chunk that a living worker holds counts as it tells; one of a dead worker, or due soon, with its jobs."""

    async def scenario(site: Site) -> None:
        batch_id = await site.submit(1, 30)
        claim = await site.chunks.claim(ChunkRef(batch_id, 0, "crm"))
        assert (await site.crm()).waiting == 30  # nobody of that name lives
        await site.fleet.report(WORKER)
        crm = await site.crm()
        assert (crm.waiting, crm.held) == (0, True)
        assert await site.wanted() == 1
        await site.chunks.commit(claim, Bundle(), Finish(delay_ms=30_000))
        assert (await site.crm()).waiting == 30

    run(scenario, CRM)


def test_what_comes_back_late_waits_for_nobody(run):
    """A chunk whose time comes in an hour wants no worker until then."""

    async def scenario(site: Site) -> None:
        batch_id = await site.submit(1, 30)
        claim = await site.chunks.claim(ChunkRef(batch_id, 0, "crm"))
        await site.chunks.commit(claim, Bundle(), Finish(delay_ms=3_600_000))
        assert await site.wanted() == 0

    run(scenario, CRM)


def test_paused_batches_and_apis_want_nobody(run):
    """What somebody paused wants no worker, and one again when it goes on."""

    async def scenario(site: Site) -> None:
        batch_id = await site.submit(4, 30)
        control = LimitControl(site.redis, "crm")
        await control.pause(None, "money", by="me")
        assert await site.wanted() == 0
        assert (await site.crm()).stopped == "paused until resumed: money"
        await control.resume(by="me")
        assert await site.wanted() == 1
        await control.pause(20, "soon over", by="me")
        assert await site.wanted() == 1
        await site.batches.control(batch_id, "paused")
        for number in range(4):  # its chunks leave the queue when somebody would take them
            assert await site.chunks.claim(ChunkRef(batch_id, number, "crm")) == "paused"
        assert await site.wanted() == 0

    run(scenario, CRM)


def test_spent_quota_wants_nobody_and_is_remembered(run):
    """When a quota is spent, nobody is wanted, also after the workers have gone, until limits change or it is over."""

    async def scenario(site: Site) -> None:
        await site.submit(4, 30)
        spent = replace(LANE, waiting=30, next_start_s=7200.0, limited_by="10000/day")
        await site.fleet.report(replace(WORKER, lanes=[spent]))
        assert await site.wanted() == 0
        assert (await site.crm()).stopped == "spent (10000/day): the next call starts in 2 h"
        await site.fleet.leave("w")
        assert await site.wanted() == 0
        await LimitControl(site.redis, "crm").set(["20000/day"], by="me")
        assert await site.wanted() == 1

    run(scenario, CRM)


def test_fetched_chunks_are_not_there_for_others(run):
    """Of an API that nothing paces, workers fetch as many chunks as they may have: only what is beyond can be taken."""

    async def scenario(site: Site) -> None:
        await site.fleet.report(WORKER)
        await site.submit(8, 100)
        assert not (await site.crm()).takeable
        await site.submit(1, 100)
        assert (await site.crm()).takeable

    run(scenario, replace(CRM, limits=("50 concurrent",)))


def test_limits_count_tokens_and_credentials(run):
    """A limit in tokens is turned into calls by what calls cost so far, one per key counts for every key in use."""

    async def scenario(site: Site) -> None:
        keys = [KeyStatus(name="a"), KeyStatus(name="b"), KeyStatus(name="c", paused_s=600.0)]
        counts = Counts(number=1, apis={"crm": {"calls": 10, "tokens": 5000}})
        await site.fleet.report(replace(WORKER, lanes=[replace(LANE, keys=keys)]), counts)
        crm = await site.crm()
        assert (crm.limit, crm.limit_per_s) == ("60/minute per key", 2.0)
        await LimitControl(site.redis, "crm").set(["30000 tokens/minute"], by="me")
        assert (await site.crm()).limit_per_s == 1.0

    run(scenario, replace(CRM, limits=("60/minute per key", "600000 tokens/minute", "9/second per model")))


def test_before_any_worker_one_is_wanted_for_a_batch(run):
    """Where no worker ever told which APIs there are, a batch that waits wants one."""

    async def scenario(site: Site) -> None:
        assert await site.wanted() == 0
        await site.submit(1, 1)
        load = await site.overview.load()
        assert (load.apis, load.upkeep) == ([], "no worker ever ran: the first one tells which APIs there are")
        assert await site.wanted() == 1

    run(scenario)
