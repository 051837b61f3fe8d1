"""Progress of a batch, and what holds it back now."""

from __future__ import annotations

import time
from collections.abc import Sequence

from msgspec import Struct

from callmill.holds import held_in_words
from callmill.jobs.traffic import Priority, TrafficClass
from callmill.ledger.batches import Batches
from callmill.ledger.fleet import Fleet, LaneStatus, WorkerStatus
from callmill.ledger.memory import MemoryGauge, Role
from callmill.ledger.records import BatchRecord, BatchState
from callmill.overview.served import lanes_of, serving, who_is_missing

_MIB = 2**20
_SHARES = (0.5, 0.95, 0.99)


class Progress(Struct, frozen=True, kw_only=True):
    """How far a batch is.

    Attributes:
        priority: How urgent its calls are.
        tenant: On whose behalf they are made; empty: nobody in particular.
        total: Jobs submitted so far; final once ``sealed``.
        done: Jobs that have their outcome.
        retries: Calls repeated after a failure.
        calls: HTTP calls made.
        throttled: Calls that the API answered with 429.
        rate: Outcomes per second over the last ten seconds.
        eta: Seconds until the end at that rate; None when it cannot be told.
        limited_by: What holds the batch back now, in words.
        p50: Latency of its calls in seconds, as are ``p95`` and ``p99``; None before the first.
        elapsed: Seconds since it was submitted, or since failed jobs of it ran again after it was over, until its end.
        mean_rate: Outcomes per second over all of ``elapsed``.
    """

    id: str
    name: str
    state: BatchState
    priority: Priority = Priority.NORMAL
    tenant: str = ""
    sealed: bool
    ended: bool
    total: int
    done: int
    succeeded: int
    failed: int
    retries: int
    calls: int
    throttled: int
    rate: float
    eta: float | None
    limited_by: str
    p50: float | None
    p95: float | None
    p99: float | None
    elapsed: float
    mean_rate: float

    @property
    def traffic(self) -> TrafficClass:
        """The class of its calls."""
        return TrafficClass(self.priority, self.tenant)


async def read_progress(batches: Batches, fleet: Fleet, gauge: MemoryGauge, batch_id: str) -> Progress:
    """Return the batch's progress as the ledger has it."""
    now_ms = time.time_ns() // 1_000_000
    record = await batches.record(batch_id)
    rate = 0.0 if record.ended else await batches.rate_per_s(record)
    quantiles = await batches.latency_quantiles_s(batch_id, _SHARES)
    if record.ended:
        return progress_of(record, now_ms, rate, quantiles, what_limits(record, ()))
    workers = await fleet.workers()
    memory = await gauge.why_wait(waits_as(record))
    return progress_of(record, now_ms, rate, quantiles, what_limits(record, workers, memory))


def waits_as(record: BatchRecord) -> Role:
    """Return who of the batch waits when Redis has no room."""
    return Role.WORKER if record.sealed else Role.PRODUCER


def progress_of(
    record: BatchRecord, now_ms: int, rate: float, quantiles: Sequence[float | None], limited_by: str
) -> Progress:
    """Return the progress of a batch.

    Args:
        record: The batch.
        now_ms: Unix time in milliseconds.
        rate: Its outcomes per second.
        quantiles: p50, p95 and p99 of its latencies in seconds.
        limited_by: What holds it back now, in words.
    """
    p50, p95, p99 = quantiles
    elapsed = max(0, (record.ended_ms or now_ms) - record.began_ms) / 1000
    return Progress(
        id=record.id,
        name=record.name,
        state=record.state,
        priority=record.traffic.priority,
        tenant=record.traffic.tenant,
        sealed=record.sealed,
        ended=record.ended,
        total=record.total,
        done=record.recorded,
        succeeded=record.succeeded,
        failed=record.failed,
        retries=record.retries,
        calls=record.calls,
        throttled=record.throttled,
        rate=rate,
        eta=(record.total - record.recorded) / rate if rate and record.sealed else None,
        limited_by=limited_by,
        p50=p50,
        p95=p95,
        p99=p99,
        elapsed=elapsed,
        mean_rate=record.recorded_since / elapsed if elapsed else 0.0,
    )


def what_limits(record: BatchRecord, workers: Sequence[WorkerStatus], memory: str = "") -> str:
    """Say in a few words what holds a batch back now; ``memory`` is why Redis has no room, where it has none."""
    if newer := _who_must_be_newer(record, workers):
        return newer
    if record.ended:
        return f"nothing: the batch is over{f'; {record.reason}' if record.reason else ''}"
    if record.state in {BatchState.PAUSED, BatchState.CANCELLED}:
        return f"the batch is {record.state}{f': {record.reason}' if record.reason else ''}"
    if full := _what_is_full(record, workers, memory):
        return full
    return who_is_missing(record, workers) or _what_limits_lanes(record, lanes_of(record, workers))


def why_unserved(record: BatchRecord, workers: Sequence[WorkerStatus]) -> str:
    """Say which APIs of a batch no worker serves; empty if all are served, or if it would not run anyway."""
    runs = not record.ended and record.state not in {BatchState.PAUSED, BatchState.CANCELLED}
    return who_is_missing(record, workers) if runs else ""


def _who_must_be_newer(record: BatchRecord, workers: Sequence[WorkerStatus]) -> str:
    if record.newer:
        return f"a newer Callmill wrote it, with ledger format {record.format}: upgrade this program to see more"
    able = [worker for worker in workers if record.id not in worker.newer_format]
    return "" if able or not workers else "a newer Callmill wrote it: upgrade the workers"


def _what_is_full(record: BatchRecord, workers: Sequence[WorkerStatus], memory: str) -> str:
    if record.full:
        return (
            f"its outcomes fill {record.unread_bytes / _MIB:,.0f} MiB of Redis: read and release them "
            "(outcomes(release=True), `callmill outcomes --release`), "
            "or submit with a higher CALLMILL_MAX_UNREAD_OUTCOMES_MB"
        )
    if memory:
        return memory
    held = next((worker.held for worker in serving(record, workers) if worker.held), "")
    return f"workers hold: {held}" if held else ""


def _what_limits_lanes(record: BatchRecord, lanes: Sequence[LaneStatus]) -> str:
    if words := what_limits_lanes(lanes):
        return words
    if record.total == record.recorded:
        return "the producer: everything so far is done"
    return "nobody yet: the jobs left are about to be taken, or wait for a retry or for a lost worker's lease to end"


def what_limits_lanes(lanes: Sequence[LaneStatus]) -> str:
    """Say what holds the calls of lanes back now; empty where they have nothing to do."""
    if (held := next((lane for lane in lanes if lane.held and not lane.diverted_to), None)) is not None:
        return held_in_words(held.api, held.held)
    if (down := next((lane for lane in lanes if lane.down_in_words or lane.diverted_to), None)) is not None:
        return down.down_in_words or f"calls of {down.api} go to {down.diverted_to}, for it is paused"
    paused = max(lanes, key=lambda lane: lane.paused_s, default=None)
    if paused is not None and paused.paused_s > 0:
        return f"{paused.api} is paused {paused.paused_in_words}: {paused.pause_reason}"
    held_back = [lane for lane in lanes if lane.limited_by]
    if held_back:
        limited = [f"{lane.api} {lane.limited_by}" for lane in held_back]
        soonest = min(held_back, key=lambda lane: lane.next_start_s or 0.0)
        return ": ".join(filter(None, (f"limit {max(set(limited), key=limited.count)}", soonest.next_start_in_words)))
    if any(lane.in_flight for lane in lanes):
        return "the API's latency" if not any(lane.waiting for lane in lanes) else "workers: more would help"
    return ""
