"""The fleet: which APIs workers serve, which workers live, and what each does now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from callmill.config.public_api import ApiAddress, PublicApi
from callmill.ledger import keys, scripts
from callmill.ledger.session import LedgerSession

STATUS_EVERY_S = 1.0
_STATUS_TTL_MS = 5_000
FAR_S = 90.0
"""A next start that is further off: a quota is spent, for limits per minute start a call a minute at least."""

_REPORTED_TTL_MS = 86_400_000
"""How long a report may be under way and still not count twice."""

_API_TTL_MS = 30 * 86_400_000
"""How long the counts of an API are kept that no worker reports any more."""


_SURELY_ENDLESS_S = 2 * 366 * 86_400
"""No pause that has an end is that long."""

_WORTH_TELLING_S = 2.0
_SPANS = ((86_400, "d"), (3600, "h"), (60, "min"))


class KeyStatus(Struct, frozen=True, kw_only=True):
    """What one worker process does with one credential of an API.

    Attributes:
        name: The credential's name; never its secret.
        paused_s: Seconds that it stays set aside; 0: it is in use.
        reason: Why it is set aside.
    """

    name: str
    paused_s: float = 0.0
    reason: str | None = None

    @property
    def paused_in_words(self) -> str:
        """How long it stays set aside."""
        return pause_in_words(self.paused_s)


class LaneStatus(Struct, frozen=True, kw_only=True):
    """What one worker process does for one API.

    Attributes:
        in_flight: Calls under way.
        waiting: Jobs that wait for a slot of the limiter or for room.
        next_start_s: Seconds until the next call may start; None when nothing waits.
        paused_s: Seconds that the lane stays paused; 0: it is not.
        pause_reason: Why it is paused.
        limited_by: The limit that holds calls back now, as text; None when none does.
        rate: Calls per second that the limiter granted over the last seconds.
        permits: Concurrency permits held; None without such a limit.
        granted: Slots granted since the start.
        slots_missed: Slots dropped since the start because this process was late.
        round_trips: The limiter's exchanges with Redis since the start.
        guard_s: Timing uncertainty that the pace of all workers allows for now.
        lateness_s: The part of it that is this process's lateness.
        way_s: The part of it that is this process's way to the limiter's Redis.
        limits_generation: The change of limits at run time that this process has adopted; 0: none was made.
        keys: Its credentials, where the API has several.
        breaker: Whether the API is up: closed, open or half-open.
        breaker_reason: Why it counts as down.
        next_probe_s: Seconds until it is tried again; None while it is up.
        retries_held: Retries that wait for the retry budget.
        diverted_to: The API that serves its calls now; None: itself.
        most_in_flight: Calls that it has under way at once at most; None: not told.
        held: Why no call starts until someone acts, and what to do; empty: calls may start.
    """

    api: str
    in_flight: int
    waiting: int
    next_start_s: float | None = None
    paused_s: float = 0.0
    pause_reason: str | None = None
    limited_by: str | None = None
    rate: float = 0.0
    permits: int | None = None
    granted: int = 0
    slots_missed: int = 0
    round_trips: int = 0
    guard_s: float = 0.0
    lateness_s: float = 0.0
    way_s: float = 0.0
    limits_generation: int = 0
    keys: list[KeyStatus] = []
    breaker: str = "closed"
    breaker_reason: str | None = None
    next_probe_s: float | None = None
    retries_held: int = 0
    diverted_to: str | None = None
    most_in_flight: int | None = None
    held: str = ""

    @property
    def down_in_words(self) -> str:
        """That the API is down, why, and when it is tried again; empty while it is up."""
        if self.breaker == "closed":
            return ""
        tried = f"tried again in {span_in_words(self.next_probe_s)}" if self.next_probe_s else "tried again now"
        served = f", its calls go to {self.diverted_to}" if self.diverted_to else ""
        return f"{self.api} is down{served}, {tried}: {self.breaker_reason}"

    @property
    def paused_in_words(self) -> str:
        """How long it stays paused."""
        return pause_in_words(self.paused_s)

    @property
    def next_start_in_words(self) -> str:
        """When the next call starts, where that is not soon; else empty."""
        waits = self.next_start_s is not None and self.next_start_s >= _WORTH_TELLING_S
        return f"the next call starts in {span_in_words(self.next_start_s or 0.0)}" if waits else ""


class WorkerStatus(Struct, frozen=True, kw_only=True):
    """What one worker process does now.

    Attributes:
        calls: HTTP calls made since its start.
        cpu_s: CPU seconds used since its start.
        draining: It finishes what it has and takes nothing new.
        held: Why it takes nothing new and starts no call now; empty: it does.
        newer_format: Batches that it met lately and that only a newer Callmill can read.
        loop_lag_s: How late its event loop was at most within the last seconds; None: not told.
        rss_bytes: Memory that the process holds.
        cpu_us_per_call: CPU microseconds per call over the last seconds; None while it makes none.
        calls_per_s: Calls per second over the last seconds.
        unreadable: It is of a newer Callmill, whose reports cannot be read here; no more is known than its id.
        chunks_at_once: Chunks that it executes at once at most; None: not told.
        serves_at: Which API of its name each of ``apis`` is; empty: unknown, from an older Callmill.
        only_batch: The only batch that it executes; empty: every batch.
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
    held: str = ""
    newer_format: list[str] = []
    loop_lag_s: float | None = None
    rss_bytes: int | None = None
    cpu_us_per_call: float | None = None
    calls_per_s: float = 0.0
    unreadable: bool = False
    chunks_at_once: int | None = None
    serves_at: dict[str, ApiAddress] = {}
    only_batch: str = ""

    def means(self, api: PublicApi) -> bool:
        """Say whether this API is the one it serves under that name, as far as known."""
        return api.name in self.apis and self.serves_at.get(api.name, api.at).identity == api.identity

    def serves(self, api: str, to: ApiAddress | None, batch_id: str = "") -> bool:
        """Say whether it executes chunks of an API; ``to``: the API of that name that they are bound to, None: any."""
        if api not in self.apis or self.only_batch not in {"", batch_id}:
            return False
        return to is None or (api in self.serves_at and self.serves_at[api].identity == to.identity)


class FarStart(Struct, frozen=True, kw_only=True):
    """That an API can start no call for long, as the last worker knew that waited for it.

    Attributes:
        start_in_s: Seconds until the next call may start.
        generation: The change of limits at run time that this holds for: after another one nobody knows.
        limit: The limit that is spent.
    """

    start_in_s: float
    generation: int
    limit: str


class Counts(Struct, frozen=True, kw_only=True):
    """What a worker process counted since its last report.

    Attributes:
        number: 1 for its first counts, one more for each further; the same number twice counts once.
        apis: API -> name of the count (as ``lua/report.lua`` has it) -> what it grew by.
        reconciled: What its reconciler did -> how often.
    """

    number: int
    apis: Mapping[str, Mapping[str, int]] = {}
    reconciled: Mapping[str, int] = {}


NO_COUNTS = Counts(number=0)


def pause_in_words(seconds: float) -> str:
    """Say how long a pause lasts."""
    return "until resumed" if seconds > _SURELY_ENDLESS_S else f"for {span_in_words(seconds)}"


def span_in_words(seconds: float) -> str:
    """Write a time in the largest unit of which it has two."""
    size_s, unit = next((span for span in _SPANS if seconds >= 2 * span[0]), (1, "s"))
    return f"{seconds / size_s:.0f} {unit}"


_status_decoder = msgspec.json.Decoder(WorkerStatus)
_api_decoder = msgspec.json.Decoder(PublicApi)
_far_start_decoder = msgspec.json.Decoder(FarStart)


class Fleet:
    """What the workers have said of themselves."""

    def __init__(self, session: LedgerSession) -> None:
        self._session = session
        self._redis = session.redis

    async def announce_apis(self, apis: Iterable[PublicApi], *, only_batch: bool = False) -> None:
        """Publish the APIs that a worker serves. They outlive the worker.

        With ``only_batch`` it serves a single batch, and does not replace another API that others announced.
        """
        known = await self.apis() if only_batch else {}
        pipeline = self._redis.pipeline(transaction=True)
        for api in apis:
            facts = msgspec.json.encode(api)
            pipeline.hset(keys.APIS_AT, _at(api.name, api.identity), facts)
            if api.name not in known or known[api.name].identity == api.identity:
                pipeline.hset(keys.APIS, api.name, facts)
        await self._session.answer(pipeline.execute())

    async def apis_of(self, workers: Sequence[WorkerStatus]) -> dict[str, PublicApi]:
        """Return the announced APIs; where another API of a name was announced later, the one these workers serve."""
        apis = await self.apis()
        for name, api in apis.items():
            serving = [worker for worker in workers if name in worker.serves_at]
            every_batch = [worker for worker in serving if not worker.only_batch]
            live = [worker.serves_at[name].identity for worker in every_batch or serving]
            if live and api.identity not in live:
                apis[name] = await self.api_at(name, live[0]) or api
        return apis

    async def api_at(self, name: str, identity: str) -> PublicApi | None:
        """Return one API of a name, if a worker has announced it."""
        facts = await self._session.answer(self._redis.hget(keys.APIS_AT, _at(name, identity)))
        return None if facts is None else _api_decoder.decode(facts)

    async def apis(self) -> dict[str, PublicApi]:
        """Return every API that a worker ever announced, by name."""
        raw = await self._session.answer(self._redis.hgetall(keys.APIS))
        return {name.decode(): _api_decoder.decode(facts) for name, facts in raw.items()}

    async def report(self, status: WorkerStatus, counts: Counts = NO_COUNTS) -> None:
        """Publish what a worker does, forgotten after a few seconds without another report, and add what it counted.

        Safe to repeat: counts of a number are added once.
        """
        names = scripts.ReportKeys(
            status=keys.worker_status(status.id),
            workers=keys.WORKERS,
            reported=keys.reported(status.id),
            reconciled=keys.RECONCILED,
            apis=[
                scripts.ApiCountsKeys(total=api.total, minutes=api.minutes) for api in map(keys.ApiKeys, counts.apis)
            ],
        )
        told = scripts.ReportArguments(
            status=msgspec.json.encode(status),
            status_ttl_ms=_STATUS_TTL_MS,
            worker=status.id,
            number=counts.number,
            number_ttl_ms=_REPORTED_TTL_MS,
            api_ttl_ms=_API_TTL_MS,
            reconciled=counts.reconciled,
            apis=list(counts.apis.values()),
        )
        await self._session.run(scripts.REPORT.call(names, told))
        await self._note_far_starts(status.lanes)

    async def _note_far_starts(self, lanes: Iterable[LaneStatus]) -> None:
        """Leave word of quotas that are spent: when nobody works any more, somebody has to know when to begin again."""
        far = [lane for lane in lanes if (lane.next_start_s or 0.0) > FAR_S and not lane.paused_s]
        if not far:
            return
        pipeline = self._redis.pipeline(transaction=False)
        for lane in far:
            start_in_s = lane.next_start_s or 0.0
            word = FarStart(start_in_s=start_in_s, generation=lane.limits_generation, limit=lane.limited_by or "")
            pipeline.set(keys.far_start(lane.api), msgspec.json.encode(word), px=int(start_in_s * 1000))
        await self._session.answer(pipeline.execute())

    async def far_starts(self, apis: Sequence[str]) -> dict[str, FarStart]:
        """Return which of these APIs could start no call for long when a worker knew it last."""
        pipeline = self._redis.pipeline(transaction=False)
        for api in apis:
            pipeline.get(keys.far_start(api))
            pipeline.pttl(keys.far_start(api))
        answers = await self._session.answer(pipeline.execute())
        return {
            api: replace(_far_start_decoder.decode(word), start_in_s=left_ms / 1000)
            for api, word, left_ms in zip(apis, answers[::2], answers[1::2], strict=True)
            if word is not None and left_ms > 0
        }

    async def leave(self, worker: str) -> None:
        """Forget a worker that ends."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.delete(keys.worker_status(worker), keys.reported(worker))
        pipeline.zrem(keys.WORKERS, worker)
        await self._session.answer(pipeline.execute())

    async def workers(self) -> list[WorkerStatus]:
        """Return the workers that reported within the last seconds."""
        ids = [worker.decode() for worker in await self._session.answer(self._redis.zrange(keys.WORKERS, 0, -1))]
        if not ids:
            return []
        raw = await self._session.answer(self._redis.mget([keys.worker_status(worker) for worker in ids]))
        return [_read(worker, status) for worker, status in zip(ids, raw, strict=True) if status is not None]


def _at(name: str, identity: str) -> str:
    return f"{name}@{identity}"


def _read(worker: str, status: bytes) -> WorkerStatus:
    try:
        return _status_decoder.decode(status)
    except msgspec.MsgspecError:
        unknown = {"pid": 0, "started_ms": 0, "calls": 0, "cpu_s": 0.0, "draining": False, "apis": [], "lanes": []}
        return msgspec.convert({"id": worker, "host": worker, "unreadable": True, **unknown}, WorkerStatus)
