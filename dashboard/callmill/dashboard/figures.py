"""Figures: what the pages show, as JSON; read over one set of connections, and at most once a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from callmill.config.embedded_server import limiter_url, redis_url
from callmill.config.redis_connections import connect
from callmill.config.settings import Settings
from callmill.dashboard.answer_cache import AnswerCache
from callmill.jobs import FailedJob
from callmill.ledger.fleet import WorkerStatus
from callmill.ledger.records import BatchState
from callmill.ledger.session import LedgerSession
from callmill.overview.api_view import ApiView
from callmill.overview.reader import Overview
from callmill.overview.traffic import MinutePoint
from callmill.overview.workers_wanted import FleetLoad
from callmill.producer import AsyncClient

_KEPT_S = 1.0
_TIMEOUT_S = 5.0
_FAILED_SHOWN, _FAILED_LOOKED_AT = 20, 2000


class Figures:
    """What the pages show. For one event loop; connects at first use, and stays connected as long as the process lives.

    Raises:
        ServerNotFoundError: No Redis is configured and no embedded server runs.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._urls = redis_url(settings), limiter_url(settings)
        self.client = AsyncClient(self._urls[0])
        self._cache = AnswerCache(for_s=_KEPT_S, timeout_s=_TIMEOUT_S)
        self._overview: Overview | None = None

    @property
    def overview(self) -> Overview:
        """The overview, on the running event loop."""
        if self._overview is None:
            ledger, limiter = self._urls
            redis = self.client.connection().redis
            other = redis if limiter == ledger else connect(limiter)
            self._overview = Overview(LedgerSession(redis), other, watermark=self._settings.memory_watermark)
        return self._overview

    async def load(self) -> FleetLoad:
        """Return the load of the fleet.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused.
        """
        return await self.overview.load()

    def changed(self) -> None:
        """Have everything read anew: somebody changed something, and wants to see that."""
        self._cache.clear()

    async def batches(self, *, offset: int, limit: int, state: BatchState | None, name: str) -> bytes:
        """Return some batches, the newest first, and the fleet; ``name``: only those whose name contains it."""

        async def read() -> bytes:
            page = await self.overview.batches(offset, limit, state, name)
            return _json({"rows": page.rows, "total": page.total, "fleet": await self._fleet()})

        return await self._cache.get(f"batches {offset} {limit} {state} {name}", read)

    async def batch(self, batch_id: str) -> bytes:
        """Return one batch.

        Raises:
            BatchNotFoundError: There is no such batch.
        """

        async def read() -> bytes:
            return _json(await self.overview.batch(batch_id))

        return await self._cache.get(f"batch {batch_id}", read)

    async def failed_jobs(self, batch_id: str, cause: str) -> bytes:
        """Return a few jobs that failed of a cause, or of any: looks at a bounded number, and shows no answer's body.

        Raises:
            BatchNotFoundError: There is no such batch.
        """

        async def read() -> bytes:
            batch, looked_at, jobs = await self.client.batch(batch_id), 0, list[dict[str, Any]]()
            async for page in batch.failed_pages():
                jobs += [_failed(job) for job in page if cause in {"", job.last.cause}]
                looked_at += len(page)
                if len(jobs) >= _FAILED_SHOWN or looked_at >= _FAILED_LOOKED_AT:
                    break
            return _json({"jobs": jobs[:_FAILED_SHOWN], "looked_at": looked_at})

        return await self._cache.get(f"failed {batch_id} {cause}", read)

    async def apis(self) -> bytes:
        """Return every API, and the fleet."""

        async def read() -> bytes:
            return _json({"apis": [_api(view) for view in await self.overview.apis()], "fleet": await self._fleet()})

        return await self._cache.get("apis", read)

    async def processes(self) -> bytes:
        """Return every worker process."""

        async def read() -> bytes:
            return _json({"processes": [_process(worker) for worker in await self.overview.workers()]})

        return await self._cache.get("processes", read)

    async def _fleet(self) -> dict[str, Any]:
        workers, redis = await self.overview.workers(), await self.overview.redis_state()
        lanes = [lane for worker in workers for lane in worker.lanes]
        return {
            "processes": len(workers),
            "rate": sum(worker.calls_per_s for worker in workers),
            "in_flight": sum(lane.in_flight for lane in lanes),
            "waiting": sum(lane.waiting for lane in lanes),
            "redis": redis,
        }


_json = msgspec.json.encode


def _failed(job: FailedJob) -> dict[str, Any]:
    last = job.last
    return {
        "id": job.id,
        "index": job.index,
        "api": job.api,
        "message": last.message,
        "attempts": last.attempts,
        "at": last.failed_at,
        "request_id": last.request_id,
    }


def _api(view: ApiView) -> dict[str, Any]:
    traffic = view.traffic
    return {
        "now": view.now,
        "rate": view.calls_per_s,
        "limits_by": view.limits_by,
        "shares": view.shares,
        "queued_chunks": view.queued_chunks,
        "oldest_chunk_age_s": view.oldest_chunk_age_s,
        "last": traffic.now,
        "hour": traffic.hour,
        "minutes": _columns(traffic.minutes),
        "total": {"calls": traffic.total.calls, "tokens": traffic.total.tokens, "throttled": traffic.total.throttled},
    }


def _columns(minutes: Sequence[MinutePoint]) -> dict[str, list[Any]]:
    """Return the minutes as columns, which is how they are drawn, and a third of the size."""
    return {
        "at": [minute.at for minute in minutes],
        "calls": [minute.calls for minute in minutes],
        "failed": [minute.failed for minute in minutes],
        "throttled": [minute.throttled for minute in minutes],
        "p95": [minute.latency.p95 for minute in minutes],
    }


def _process(worker: WorkerStatus) -> dict[str, Any]:
    lanes = worker.lanes
    return {
        "id": worker.id,
        "host": worker.host,
        "pid": worker.pid,
        "started": worker.started_ms / 1000,
        "apis": worker.apis,
        "in_flight": sum(lane.in_flight for lane in lanes),
        "waiting": sum(lane.waiting for lane in lanes),
        "rate": worker.calls_per_s,
        "calls": worker.calls,
        "cpu_s": worker.cpu_s,
        "cpu_us_per_call": worker.cpu_us_per_call,
        "loop_lag_s": worker.loop_lag_s,
        "rss_bytes": worker.rss_bytes,
        "held": worker.held,
        "draining": worker.draining,
    }
