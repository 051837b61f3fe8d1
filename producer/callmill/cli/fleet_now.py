"""FleetNow: everything at one moment, as ``status`` and ``watch`` show it without a batch."""

from __future__ import annotations

from datetime import UTC, datetime

from msgspec import Struct
from msgspec.structs import replace

from callmill.cli.problems import Problem, fleet_problems
from callmill.ledger.fleet import WorkerStatus
from callmill.overview.api_view import ApiView
from callmill.overview.progress import Progress
from callmill.overview.reader import Overview, RedisState


class FleetNow(Struct, frozen=True, kw_only=True):
    """Batches, APIs and workers at one moment.

    Attributes:
        at: When they were read.
        away: Why Redis could not be read since then; empty: it could.
        problems: What is wrong, the worst first.
        batches: Those that are not over, and the newest ones.
        unfinished: How many are not over.
        batches_total: How many there are.
        apis: Without what charts and Prometheus need: the single minutes, and the buckets of ever.
    """

    at: datetime
    away: str = ""
    problems: list[Problem]
    batches: list[Progress]
    unfinished: int
    batches_total: int
    apis: list[ApiView]
    workers: list[WorkerStatus]
    redis: RedisState


async def read_fleet(overview: Overview, batches: int) -> FleetNow:
    """Read everything; of the batches so many that are not over, and so many of the newest.

    What it costs does not grow with jobs and batches.

    Raises:
        RedisUnavailableError: Redis cannot be reached or refused.
    """
    newest, unfinished = await overview.batches(limit=batches), await overview.unfinished(batches)
    known = {batch.id for batch in newest.rows}
    apis = [_without_series(api) for api in await overview.apis()]
    workers = await overview.workers()
    redis = await overview.redis_state()
    waiting = [api.now.api for api in apis if api.queued_chunks]
    elsewhere = [waits for api in apis for waits in api.elsewhere]
    return FleetNow(
        at=datetime.now(UTC),
        problems=fleet_problems([api.now for api in apis], workers, waiting, redis.full, elsewhere),
        batches=[*newest.rows, *(batch for batch in unfinished.rows if batch.id not in known)],
        unfinished=unfinished.total,
        batches_total=newest.total,
        apis=apis,
        workers=workers,
        redis=redis,
    )


def _without_series(api: ApiView) -> ApiView:
    total = replace(api.traffic.total, latency_buckets={}, wait_buckets={})
    return replace(api, traffic=replace(api.traffic, minutes=[], total=total))
