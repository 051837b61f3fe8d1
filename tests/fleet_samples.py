"""Batches, APIs and workers to show, as the overview tells them."""

from __future__ import annotations

from datetime import UTC, datetime

from msgspec.structs import replace

from callmill.cli.fleet_now import FleetNow
from callmill.config.public_api import PublicApi
from callmill.ledger.fleet import LaneStatus, WorkerStatus
from callmill.ledger.records import BatchState
from callmill.limits.control import ControlState
from callmill.overview.api_now import ApiNow, summed_up
from callmill.overview.api_view import ApiView, shares_of
from callmill.overview.progress import Progress
from callmill.overview.reader import RedisState
from callmill.overview.traffic import ApiTraffic, Quantiles, Totals, Traffic

AT = datetime(2026, 3, 1, 10, 42, 17, tzinfo=UTC)
BATCH = Progress(
    id="0123456789ab", name="translate-catalogue", state=BatchState.RUNNING, sealed=True, ended=False,
    total=12_000_000, done=9_000_000, succeeded=8_999_000, failed=1_000, retries=12_345, calls=9_012_345,
    throttled=17, rate=12_345.6, eta=243.0, limited_by="limit openai 200000 tokens/minute", p50=0.12, p95=0.4,
    p99=1.5, elapsed=7_300.0, mean_rate=1_643.8,
)  # fmt: skip
PAUSED = replace(
    BATCH, id="paused000000", name="nightly", state=BatchState.PAUSED, rate=0.0, eta=None, total=500, done=20,
    succeeded=20, failed=0, limited_by="the batch is paused",
)  # fmt: skip
DONE = replace(
    BATCH, id="done00000000", name="embeddings", state=BatchState.DONE, ended=True, done=12_000_000,
    succeeded=12_000_000, failed=0, rate=0.0, eta=None, limited_by="nothing: the batch is over",
)  # fmt: skip
LANE = LaneStatus(
    api="openai", in_flight=12, waiting=3_030, rate=97.8, limited_by="100/second", guard_s=0.022, lateness_s=0.012,
    way_s=0.005,
)  # fmt: skip
WORKER = WorkerStatus(
    id="w1", host="node-1", pid=4711, started_ms=int(AT.timestamp() * 1000) - 90_000, calls=9_012_345, cpu_s=730.0,
    draining=False, apis=["openai", "crm"], lanes=[LANE], loop_lag_s=0.0021, rss_bytes=90 * 2**20, cpu_us_per_call=81.4,
    calls_per_s=97.8,
)  # fmt: skip
OPENAI = PublicApi(name="openai", base_url="https://api.openai.com", limits=("100/second", "64 concurrent"))


def api_now(api: PublicApi = OPENAI, *workers: WorkerStatus) -> ApiNow:
    """Return an API with what its workers do."""
    return summed_up(api, ControlState(0, None, None, {}), workers, {})


def api_view(now: ApiNow, limits_by: str = "limit openai 100/second", *, queued: int = 0) -> ApiView:
    """Return an API in detail."""
    quick = Quantiles(p50=0.12, p95=0.4, p99=1.5)
    lately = Traffic(calls=8_800, results={"2xx": 8_783, "429": 17}, throttled=17, failed=4, span_s=90.0, latency=quick)
    traffic = ApiTraffic(api=now.api, now=lately, hour=lately, minutes=[], total=Totals())
    return ApiView(
        now=now,
        traffic=traffic,
        queued_chunks=queued,
        oldest_chunk_age_s=None,
        limits_by=limits_by,
        shares=shares_of(now, traffic),
    )


API = api_view(api_now(OPENAI, WORKER))
REDIS = RedisState(
    used_bytes=12 * 2**20, max_bytes=512 * 2**20, watermark=0.85, full="", clients=4, version="7.4", uptime_s=99
)
FLEET = FleetNow(
    at=AT,
    problems=[],
    batches=[DONE, PAUSED, BATCH],
    unfinished=2,
    batches_total=128,
    apis=[API],
    workers=[WORKER],
    redis=REDIS,
)
