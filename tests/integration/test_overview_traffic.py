"""What workers count of an API: reported every second, once, into keys that stay small."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import msgspec
from local_nodes import until, write_profiles
from scripted_api import scripted_api

from callmill.config.redis_connections import connect
from callmill.errors import RedisUnavailableError
from callmill.ledger import LedgerSession, keys
from callmill.ledger.fleet import NO_COUNTS, Counts, Fleet, WorkerStatus
from callmill.overview.reader import Overview
from callmill.overview.traffic import ApiTraffic, read_traffic
from callmill.producer import Job
from callmill.workers.reporter import Reporter
from callmill.workers.tally import Tally
from callmill.workers.verdict import SUCCEEDED

OK = SimpleNamespace(status=200)
STATUS = WorkerStatus(id="w", host="h", pid=1, started_ms=0, calls=0, cpu_s=0.0, draining=False, apis=["api"], lanes=[])


class Unreliable(Fleet):
    """A fleet whose reports fail when told to, before or after Redis has them."""

    fails = ""

    async def report(self, status: WorkerStatus, counts: Counts = NO_COUNTS) -> None:
        """Report, or fail."""
        if self.fails != "before":
            await super().report(status, counts)
        if self.fails:
            raise RedisUnavailableError("away")


def run(redis_url, scenario):
    """Run a scenario with a ledger."""

    async def opened() -> None:
        redis = connect(redis_url)
        try:
            await scenario(LedgerSession(redis))
        finally:
            await redis.aclose()

    asyncio.run(opened())


def test_no_report_is_lost_and_none_counts_twice(redis_url):
    """Whatever reports fail, and whether Redis had them: in the end every call is counted once."""

    async def scenario(session: LedgerSession) -> None:
        fleet, lane = Unreliable(session), SimpleNamespace(tally=Tally())
        reporter = Reporter(fleet, {"api": lane})  # type: ignore[dict-item]
        for fails in ("", "before", "after", "after", "before", "", "after", "", ""):
            fleet.fails = fails
            for _ in range(3):
                lane.tally.started(0.0)
                lane.tally.ended(SUCCEEDED, OK, 1000)
            reporter.reconciled["put_back"] += 1
            try:
                await reporter.send(STATUS)
            except RedisUnavailableError:
                assert fails
        await reporter.send(STATUS)  # what came while an earlier parcel was still out
        traffic = await read_traffic(session, "api")
        assert traffic.total.calls == traffic.hour.calls == lane.tally.calls
        assert traffic.total.results == {"2xx": lane.tally.calls}
        assert (
            sum(traffic.total.latency_buckets.values()) == sum(traffic.total.wait_buckets.values()) == lane.tally.calls
        )
        assert (await Overview(session, session.redis).reconciled())["put_back"] == 9

    run(redis_url, scenario)


def test_two_workers_count_together(redis_url):
    """What an API did is the sum over its workers, ever and by the minute."""

    async def scenario(session: LedgerSession) -> None:
        fleet = Fleet(session)
        for worker in ("a", "b"):
            status = WorkerStatus(**{name: getattr(STATUS, name) for name in STATUS.__struct_fields__} | {"id": worker})
            for number in (1, 2):
                counts = {"calls": 5, "r:2xx": 4, "r:timeout": 1, "tokens": 100, "l:200": 5, "latency_us": 10**6}
                await fleet.report(status, Counts(number=number, apis={"api": counts}))
        traffic = await read_traffic(session, "api")
        assert (traffic.total.calls, traffic.total.tokens, traffic.total.latency_s) == (20, 400, 4.0)
        assert traffic.now.results == traffic.hour.results == {"2xx": 16, "timeout": 4}
        assert sum(minute.calls for minute in traffic.minutes) == 20
        assert (len(traffic.minutes), traffic.now.latency.p99) == (60, traffic.hour.latency.p50)
        assert traffic.now.limiter_wait.p50 is None

    run(redis_url, scenario)


def test_what_is_kept_of_an_api_is_bounded(redis_url):
    """However long an API is called, 64 minutes are kept of it; what is older than an hour is not shown."""

    async def scenario(session: LedgerSession) -> None:
        fleet, names = Fleet(session), keys.ApiKeys("api")
        minute = (await session.redis.time())[0] // 60
        old = {at % 64: msgspec.msgpack.encode({"at": at, "calls": 1}) for at in range(minute - 64, minute)}
        await session.redis.hset(names.minutes, mapping=old)
        await fleet.report(STATUS, Counts(number=1, apis={"api": {"calls": 1}}))
        assert await session.redis.hlen(names.minutes) == 64
        assert (await read_traffic(session, "api")).hour.calls == 60
        for key in (names.total, names.minutes):
            assert 29 * 86_400 < await session.redis.ttl(key) <= 30 * 86_400
        await fleet.leave(STATUS.id)
        assert await session.redis.exists(keys.reported(STATUS.id)) == 0

    run(redis_url, scenario)


def test_an_api_that_nobody_called_has_no_traffic(redis_url):
    """Without any report everything is zero, and quantiles are unknown."""

    async def scenario(session: LedgerSession) -> None:
        traffic = await read_traffic(session, "api")
        assert (traffic.total.calls, traffic.now.calls, traffic.now.rate, len(traffic.minutes)) == (0, 0, 0.0, 60)
        assert traffic.now.latency.p50 is None

    run(redis_url, scenario)


def test_a_workers_counts_are_those_of_its_batches(redis_url, client, start_worker, tmp_path):
    """Calls, their results, retries, refusals and outcomes of an API are those of its batches, and of its server."""
    with scripted_api() as script:
        profile = [f'base_url = "{script.url}"', "retry = { attempts = 4, base = 0.01, cap = 0.05 }"]
        start_worker(redis_url, write_profiles(tmp_path / "apis.toml", {"script": profile}))
        urls = [*[f"/ok/{at}" for at in range(30)], *["/status/404"] * 3, "/flaky/2/a", "/throttle/b"]
        batch = client.submit(Job("GET", url, api="script") for url in urls)
        assert batch.wait(timeout=30).ended
        progress = batch.progress()
        seen, (status,) = until(lambda: reported(redis_url, progress.calls), what="every call is reported")
        assert (seen.total.succeeded, seen.total.failed) == (progress.succeeded, progress.failed) == (32, 3)
        assert (seen.total.retries, seen.total.throttled) == (progress.retries, progress.throttled) == (2, 1)
        assert seen.total.results == {"2xx": 32, "4xx": 3, "5xx": 2, "429": 1}
        assert seen.total.calls == progress.calls == len(script.requests)
        assert sum(seen.total.latency_buckets.values()) == sum(seen.total.wait_buckets.values()) == progress.calls
        assert status.loop_lag_s >= 0
        assert status.rss_bytes > 2**20
        assert status.cpu_us_per_call is None or status.cpu_us_per_call > 0


def reported(redis_url, calls: int) -> tuple[ApiTraffic, list[WorkerStatus]] | None:
    """Return the traffic and the workers once so many calls were reported."""
    seen: list[tuple[ApiTraffic, list[WorkerStatus]]] = []

    async def look(session: LedgerSession) -> None:
        overview = Overview(session, session.redis)
        seen.append(((await overview.apis())[0].traffic, await overview.workers()))

    run(redis_url, look)
    return seen[0] if seen[0][0].total.calls >= calls else None
