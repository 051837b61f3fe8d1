"""The fleet: which APIs workers serve, which workers live, and what each does now."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

from callmill.config.public_api import PublicApi
from callmill.ledger import keys
from callmill.ledger.session import LedgerSession

STATUS_EVERY_S = 1.0
_STATUS_TTL_MS = 5_000


class LaneStatus(Struct, frozen=True, kw_only=True):
    """What one worker process does for one API.

    Attributes:
        in_flight: Calls under way.
        waiting: Jobs that wait for a slot of the limiter or for room.
        next_start_s: Seconds until the next call may start; None when nothing waits.
        paused_s: Seconds that the lane stays paused; 0: it is not.
        pause_reason: Why it is paused.
        limited_by: The limit that holds calls back now, as text; None when none does.
        granted: Slots of the limiter granted since the start.
        slots_missed: Of these, how many passed because the process was late, though a call waited.
        round_trips: The limiter's exchanges with Redis since the start.
        guard_s: Timing uncertainty that the pace of all workers allows for now.
    """

    api: str
    in_flight: int
    waiting: int
    next_start_s: float | None = None
    paused_s: float = 0.0
    pause_reason: str | None = None
    limited_by: str | None = None
    granted: int = 0
    slots_missed: int = 0
    round_trips: int = 0
    guard_s: float = 0.0


class WorkerStatus(Struct, frozen=True, kw_only=True):
    """What one worker process does now.

    Attributes:
        calls: HTTP calls made since its start.
        cpu_s: CPU seconds used since its start.
        draining: It finishes what it has and takes nothing new.
    """

    id: str
    host: str
    pid: int
    started_ms: int
    calls: int
    cpu_s: float
    draining: bool
    apis: list[str]
    lanes: list[LaneStatus]


_status_decoder = msgspec.json.Decoder(WorkerStatus)
_api_decoder = msgspec.json.Decoder(PublicApi)


class Fleet:
    """What the workers have said of themselves."""

    def __init__(self, session: LedgerSession) -> None:
        self._session = session
        self._redis = session.redis

    async def announce_apis(self, apis: Iterable[PublicApi]) -> None:
        """Publish the APIs that a worker serves. They outlive the worker."""
        facts: dict[Any, Any] = {api.name: msgspec.json.encode(api) for api in apis}
        if facts:
            await self._session.answer(self._redis.hset(keys.APIS, mapping=facts))

    async def apis(self) -> dict[str, PublicApi]:
        """Return every API that a worker ever announced, by name."""
        raw = await self._session.answer(self._redis.hgetall(keys.APIS))
        return {name.decode(): _api_decoder.decode(facts) for name, facts in raw.items()}

    async def report(self, status: WorkerStatus) -> None:
        """Publish what a worker does; forgotten after a few seconds without another report."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.set(keys.worker_status(status.id), msgspec.json.encode(status), px=_STATUS_TTL_MS)
        pipeline.zadd(keys.WORKERS, {status.id: int(time.time() * 1000)})
        await self._session.answer(pipeline.execute())

    async def leave(self, worker: str) -> None:
        """Forget a worker that ends."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.delete(keys.worker_status(worker))
        pipeline.zrem(keys.WORKERS, worker)
        await self._session.answer(pipeline.execute())

    async def workers(self) -> list[WorkerStatus]:
        """Return the workers that reported within the last seconds."""
        ids = [worker.decode() for worker in await self._session.answer(self._redis.zrange(keys.WORKERS, 0, -1))]
        if not ids:
            return []
        raw = await self._session.answer(self._redis.mget([keys.worker_status(worker) for worker in ids]))
        gone = [worker for worker, status in zip(ids, raw, strict=True) if status is None]
        if gone:
            await self._session.answer(self._redis.zrem(keys.WORKERS, *gone))
        return [_status_decoder.decode(status) for status in raw if status is not None]
