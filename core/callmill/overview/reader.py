"""Overview: everything that views show, read in a handful of round trips each; never a scan over jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from redis.asyncio import Redis

from callmill.config.public_api import ApiAddress
from callmill.config.short_texts import MOST_OF_NAME, read_short
from callmill.errors import BatchNotFoundError
from callmill.holds import current_holds
from callmill.jobs.formats import newer_batch
from callmill.jobs.line import Line
from callmill.ledger import keys
from callmill.ledger.fleet import FAR_S, Fleet, WorkerStatus
from callmill.ledger.keys import ApiKeys, BatchKeys
from callmill.ledger.latency import quantiles_s
from callmill.ledger.lines import Lines
from callmill.ledger.memory import MemoryGauge, Role
from callmill.ledger.records import BatchRecord, BatchState, recorded_per_s
from callmill.ledger.session import LedgerSession
from callmill.limits.control import current_states
from callmill.overview.api_load import fleet_load
from callmill.overview.api_now import summed_up
from callmill.overview.api_view import ApiView, shares_of, what_limits_api
from callmill.overview.backlog import read_backlog
from callmill.overview.batch_counts import BatchCounts, count_batches
from callmill.overview.batch_view import BatchView, ask_details, read_details
from callmill.overview.progress import Progress, progress_of, waits_as, what_limits
from callmill.overview.served import WaitsElsewhere, served_at
from callmill.overview.traffic import traffic_of
from callmill.overview.workers_wanted import FleetLoad

_SHARES = (0.5, 0.95, 0.99)
_STATES_AT_ONCE = 1000


class BatchPage(Struct, frozen=True, kw_only=True):
    """Some batches, the newest first; ``total``: how many there are, of those that were asked for."""

    rows: list[Progress]
    total: int


class RedisState(Struct, frozen=True, kw_only=True):
    """The Redis of the ledger.

    Attributes:
        used_bytes: Memory in use, as Redis itself counts it.
        max_bytes: Its ``maxmemory``; 0: none, so it takes all that the machine has.
        watermark: Share of ``max_bytes`` from which on producers wait.
        full: Why producers or workers wait for memory; empty: nobody does.
        clients: Connections.
        version: Of the server.
        uptime_s: How long it runs.
    """

    used_bytes: int
    max_bytes: int
    watermark: float
    full: str
    clients: int
    version: str
    uptime_s: int


class Overview:
    """What goes on, as every view shows it.

    Args:
        session: The ledger.
        limiter: The limiter's Redis.
        watermark: Share of Redis's memory from which on producers wait.
    """

    def __init__(self, session: LedgerSession, limiter: Redis, *, watermark: float = 0.85) -> None:
        self._session = session
        self._redis = session.redis
        self._limiter = limiter
        self._watermark = watermark
        self._fleet = Fleet(session)
        self._lines = Lines(session)
        self._gauge = MemoryGauge(session, watermark)

    async def batches(
        self, offset: int = 0, limit: int = 50, state: BatchState | None = None, name: str = ""
    ) -> BatchPage:
        """Return batches, the newest first.

        Args:
            offset: How many to leave out.
            limit: How many at most.
            state: Only those in this state; None: all.
            name: Only those whose name or id contains it, in small letters or capitals.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused.
        """
        if state is None and not name:
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.zcard(keys.BATCHES)
            pipeline.zrevrange(keys.BATCHES, offset, offset + limit - 1)
            total, ids = await self._session.answer(pipeline.execute())
        else:
            chosen = await self._chosen(state, name.casefold())
            total, ids = len(chosen), chosen[offset : offset + limit]
        found = await self._read([batch_id.decode() for batch_id in ids])
        workers = await self._fleet.workers()
        return BatchPage(rows=[await self._progress(look, workers) for look in found], total=total)

    async def unfinished(self, limit: int = 50) -> BatchPage:
        """Return batches that have not ended, the newest first.

        Where there are more than ``limit``, those are left out that the alerts' watch has not looked at for longest.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused.
        """
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.zcard(keys.ACTIVE)
        pipeline.zrevrange(keys.ACTIVE, 0, limit - 1)
        total, ids = await self._session.answer(pipeline.execute())
        found = await self._read([batch_id.decode() for batch_id in ids])
        found.sort(key=lambda look: -look.record.created_ms)
        workers = await self._fleet.workers()
        return BatchPage(rows=[await self._progress(look, workers) for look in found], total=total)

    async def batch(self, batch_id: str) -> BatchView:
        """Return one batch in detail.

        Raises:
            BatchNotFoundError: There is no such batch.
            UnknownFormatError: A newer Callmill wrote it.
            RedisUnavailableError: Redis cannot be reached or refused.
        """
        found = await self._read([batch_id], in_detail=True)
        if not found:
            raise BatchNotFoundError(
                f"no batch {batch_id!r}: never submitted to this Redis, deleted, or its retention is over"
            )
        (look,) = found
        record = look.record
        if record.newer:
            raise newer_batch(batch_id, record.format)
        details = read_details(record, look.latencies, look.details, look.now_ms)
        return BatchView(
            progress=await self._progress(look, await self._fleet.workers()),
            history=details.history,
            step_s=details.step_s,
            errors=details.errors,
            slowest=details.slowest,
            latency_buckets=look.latencies,
            age_s=max(0, look.now_ms - record.created_ms) / 1000,
            created_at=record.created_ms / 1000,
            began_at=record.began_ms / 1000,
            ended_at=record.ended_ms / 1000 if record.ended else None,
            apis=record.apis,
            chunks=record.chunks,
            leased=record.leased,
            unread_bytes=record.unread_bytes,
            max_unread_bytes=record.max_unread_bytes,
            deadline_at=record.deadline_ms / 1000 or None,
        )

    async def apis(self) -> list[ApiView]:
        """Return every API that a worker ever announced, by name.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused.
            UnknownFormatError: A newer Callmill wrote the limits.
        """
        workers = await self._fleet.workers()
        known = await self._fleet.apis_of(workers)
        names = sorted(known)
        lines: dict[str, list[str]] = {name: [name] for name in names}
        others = list[Line]()
        for line in await self._lines.used():
            if line.api in known:
                if line.identity in {"", known[line.api].identity}:
                    lines[line.api].append(str(line))
                else:
                    others.append(line)
        elsewhere = await self._elsewhere(others, workers)
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.time()
        for name in names:
            pipeline.hgetall(ApiKeys(name).total)
            pipeline.hvals(ApiKeys(name).minutes)
        every_line = [line for name in names for line in lines[name]]
        for text in every_line:
            pipeline.zcard(keys.queued(text))
            pipeline.zrange(keys.queued(text), 0, 0, withscores=True)
        (seconds, micros), *answers = await self._session.answer(pipeline.execute())
        now_s = seconds + micros / 1e6
        pairs = list(zip(answers[::2], answers[1::2], strict=True))
        counted = dict(zip(names, pairs[: len(names)], strict=True))
        queued = dict(zip(every_line, pairs[len(names) :], strict=True))
        limiters = [known[name].limiter for name in names]
        states = await current_states(self._limiter, limiters)
        holds = await current_holds(self._limiter, limiters)
        memory = await self._gauge.why_wait(Role.WORKER)
        views = []
        for name, state, held in zip(names, states, holds, strict=True):
            now = summed_up(known[name], state, workers, held)
            traffic = traffic_of(name, counted[name][0], counted[name][1], now_s)
            chunks = sum(queued[line][0] for line in lines[name])
            oldest_ms = min((first[0][1] for line in lines[name] if (first := queued[line][1])), default=None)
            waits = [each for each in elsewhere if each.api == name]
            limits_by = what_limits_api(
                now, chunks, [worker for worker in workers if worker.means(known[name])], memory
            )
            views.append(
                ApiView(
                    now=now,
                    traffic=traffic,
                    queued_chunks=chunks,
                    oldest_chunk_age_s=None if oldest_ms is None else max(0.0, now_s - oldest_ms / 1000),
                    limits_by="; ".join([limits_by, *(each.text for each in waits)]),
                    shares=shares_of(now, traffic),
                    elsewhere=waits,
                )
            )
        return views

    async def _elsewhere(self, lines: Sequence[Line], workers: Sequence[WorkerStatus]) -> list[WaitsElsewhere]:
        """Return what waits in those of these lines that no worker serves; they are bound to other APIs of a name."""
        left = [
            line
            for line in lines
            if not any(worker.serves(line.api, ApiAddress(line.identity, ""), line.batch) for worker in workers)
        ]
        if not left:
            return []
        pipeline = self._redis.pipeline(transaction=False)
        for line in left:
            pipeline.zcard(keys.queued(str(line)))
        counts = Counter[tuple[str, str]]()
        for line, chunks in zip(left, await self._session.answer(pipeline.execute()), strict=True):
            counts[line.api, line.identity] += chunks
        found = []
        for (api, identity), chunks in sorted(counts.items()):
            if chunks:
                known = await self._fleet.api_at(api, identity)
                address = known.address if known else "an unknown address"
                at = served_at(workers, api)
                found.append(WaitsElsewhere(api=api, address=address, chunks=chunks, served_at=at))
        return found

    async def workers(self) -> list[WorkerStatus]:
        """Return the workers that reported within the last seconds.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused.
        """
        return await self._fleet.workers()

    async def load(self) -> FleetLoad:
        """Return the load of the fleet: what waits, what limits allow, what workers can do.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused.
            UnknownFormatError: A newer Callmill wrote the limits.
        """
        return await self.load_of(await self.apis(), await self.workers())

    async def load_of(self, views: Sequence[ApiView], workers: Sequence[WorkerStatus]) -> FleetLoad:
        """Return the load of a fleet whose APIs and workers were just read.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused.
        """
        names = [view.now.api for view in views]
        known = {name: api.identity for name, api in (await self._fleet.apis_of(workers)).items() if name in names}
        backlog = await read_backlog(self._session, known, {worker.id for worker in workers}, soon_s=FAR_S)
        return fleet_load(views, workers, backlog, await self._fleet.far_starts(names) if names else {})

    async def redis_state(self) -> RedisState:
        """Return how the Redis of the ledger is.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused.
        """
        info = await self._session.answer(self._redis.info())
        full = await self._gauge.why_wait(Role.PRODUCER) or await self._gauge.why_wait(Role.WORKER)
        return RedisState(
            used_bytes=int(info.get("used_memory", 0)) - int(info.get("mem_not_counted_for_evict", 0)),
            max_bytes=int(info.get("maxmemory", 0)),
            watermark=self._watermark,
            full=full,
            clients=int(info.get("connected_clients", 0)),
            version=str(info.get("redis_version", "")),
            uptime_s=int(info.get("uptime_in_seconds", 0)),
        )

    async def reconciled(self) -> dict[str, int]:
        """Return what reconcilers did since ever: action -> how often.

        ``put_back``: chunks whose lease had ended or whose due time had come; ``published_again``: hints of chunks that
        nobody had taken, or that were lost; ``unparked``: chunks held back that a dead producer had left.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused.
        """
        counts = await self._session.answer(self._redis.hgetall(keys.RECONCILED))
        return {action.decode(): int(count) for action, count in counts.items()}

    async def batch_counts(self) -> BatchCounts:
        """Return how many batches are in which state, and how many are stuck.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused.
        """
        return await count_batches(self._session)

    async def _chosen(self, state: BatchState | None, name: str) -> list[bytes]:
        """Return the ids of all batches in a state whose name or id contains ``name``, the newest first."""
        every = await self._session.answer(self._redis.zrevrange(keys.BATCHES, 0, -1))
        chosen = []
        for start in range(0, len(every), _STATES_AT_ONCE):
            some = every[start : start + _STATES_AT_ONCE]
            pipeline = self._redis.pipeline(transaction=False)
            for batch_id in some:
                pipeline.hmget(BatchKeys(batch_id.decode()).meta, "control", "phase", "ended_ms", "name")
            answers = await self._session.answer(pipeline.execute())
            for batch_id, (control, phase, ended_ms, called) in zip(some, answers, strict=True):
                label = f"{batch_id.decode()} {read_short(called or b'', MOST_OF_NAME).casefold()}"
                if control is None or name not in label:
                    continue
                if state in {None, BatchState.read(control, phase, ended=ended_ms is not None)}:
                    chosen.append(batch_id)
        return chosen

    async def _read(self, ids: Sequence[str], *, in_detail: bool = False) -> list[_Look]:
        """Look at batches in one round trip; those whose retention is over are left out: workers forget them."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.time()
        asked = 3
        for batch_id in ids:
            names = BatchKeys(batch_id)
            pipeline.hgetall(names.meta)
            pipeline.hgetall(names.latency)
            pipeline.hvals(names.rate)
            if in_detail:
                asked = 3 + ask_details(pipeline, batch_id)
        (seconds, micros), *answers = await self._session.answer(pipeline.execute())
        found = []
        for at, batch_id in enumerate(ids):
            meta, latencies, ring, *details = answers[asked * at : asked * (at + 1)]
            if not meta:
                continue
            record = BatchRecord.read(batch_id, meta)
            if record.newer:  # nobody here knows what the rest means
                latencies, ring = {}, []
            found.append(
                _Look(
                    record=record,
                    latencies={int(bucket): int(calls) for bucket, calls in latencies.items()},
                    ring=ring,
                    details=details,
                    now_ms=seconds * 1000 + micros // 1000,
                )
            )
        return found

    async def _progress(self, look: _Look, workers: Sequence[WorkerStatus]) -> Progress:
        record = look.record
        rate = 0.0 if record.ended else recorded_per_s(record, look.ring, look.now_ms // 1000)
        memory = "" if record.ended else await self._gauge.why_wait(waits_as(record))
        quantiles = quantiles_s(look.latencies, _SHARES)
        return progress_of(record, look.now_ms, rate, quantiles, what_limits(record, workers, memory))


class _Look(Struct, frozen=True):
    """What was read of one batch."""

    record: BatchRecord
    latencies: dict[int, int]
    ring: list[Any]
    details: list[Any]
    now_ms: int
