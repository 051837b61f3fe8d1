"""What is out of the ordinary now, and when that is worth a word. Pure.

A condition is told when it has held for a while, and that it is over when it has not held for a while; the second while
doubles each time that it comes back soon, so that what comes and goes all day is told a few times only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum

from msgspec import Struct

from callmill.config.alert_policy import AlertEvent
from callmill.ledger.alert_log import AlertState
from callmill.ledger.fleet import WorkerStatus
from callmill.ledger.records import BatchRecord, BatchState
from callmill.overview.progress import what_limits
from callmill.overview.served import lanes_of, serving

_LONGEST_REST_S = 600.0
_SOON_S = 3600.0
"""What was told and comes back within this time comes and goes."""

_DOUBLINGS = 7


class Kind(StrEnum):
    """What can be out of the ordinary."""

    LANE = "lane"
    API = "api"
    MEMORY = "memory"
    STUCK = "stuck"
    HELD = "held"

    @property
    def of_batch(self) -> bool:
        """Whether it is a batch's."""
        return self in {Kind.STUCK, Kind.HELD}


class Rule(Struct, frozen=True):
    """When a condition is told.

    Attributes:
        begins: The event when it does.
        ends: The event when it is over.
        holds_s: Seconds that it must hold before it is told.
        rests_s: Seconds that it must not hold before its end is told, the first time.
    """

    begins: AlertEvent
    ends: AlertEvent
    holds_s: float
    rests_s: float


RULES = {
    Kind.LANE: Rule(AlertEvent.LANE_PAUSED, AlertEvent.LANE_RESUMED, 2.0, 5.0),
    Kind.API: Rule(AlertEvent.API_DOWN, AlertEvent.API_UP, 0.0, 5.0),
    Kind.MEMORY: Rule(AlertEvent.MEMORY_FULL, AlertEvent.MEMORY_FREE, 2.0, 5.0),
    Kind.STUCK: Rule(AlertEvent.BATCH_STUCK, AlertEvent.BATCH_GOES_ON, 0.0, 0.0),
    Kind.HELD: Rule(AlertEvent.BATCH_HELD, AlertEvent.BATCH_GOES_ON, 0.0, 2.0),
}


class Condition(Struct, frozen=True, kw_only=True):
    """One condition as it was seen.

    Attributes:
        subject: The API or the batch's id; empty: the fleet.
        holds: Whether it is out of the ordinary.
        reason: Why, in words.
        batch: The batch that it is about.
    """

    kind: Kind
    subject: str
    holds: bool
    reason: str = ""
    batch: BatchRecord | None = None

    @property
    def field(self) -> str:
        """What its state is kept under."""
        return f"{self.kind}:{self.subject}"


def subject_of(field: str) -> tuple[Kind | None, str]:
    """Read a field back; None for a kind that only a newer Callmill knows."""
    kind, _, subject = field.partition(":")
    return (Kind(kind) if kind in set(Kind) else None), subject


def advance(state: AlertState | None, rule: Rule, *, holds: bool, now_ms: int) -> tuple[AlertState | None, bool]:
    """Return the state after a look, and whether the change is to be told now; None: nothing to remember."""
    before = state or AlertState()
    if holds == before.told:
        if not holds and now_ms - before.told_ms > _SOON_S * 1000:
            return None, False
        return (before if not before.since_ms else _with(before, since_ms=0)), False
    since_ms = before.since_ms or now_ms
    rests_s = min(rule.rests_s * 2 ** min(max(before.times - 1, 0), _DOUBLINGS), _LONGEST_REST_S)
    if now_ms - since_ms < (rule.holds_s if holds else rests_s) * 1000:
        return (before if before.since_ms else _with(before, since_ms=since_ms)), False
    if not holds:
        return AlertState(False, 0, now_ms, before.began_ms, before.times), True
    soon = before.told_ms and now_ms - before.told_ms <= _SOON_S * 1000
    return AlertState(True, 0, now_ms, since_ms, before.times + 1 if soon else 1), True


def _with(state: AlertState, *, since_ms: int) -> AlertState:
    return AlertState(state.told, since_ms, state.told_ms, state.began_ms, state.times)


def of_apis(workers: Sequence[WorkerStatus]) -> Iterator[Condition]:
    """Yield the conditions of every API that a worker serves now."""
    lanes = [lane for worker in workers for lane in worker.lanes]
    for api in sorted({lane.api for lane in lanes}):
        own = [lane for lane in lanes if lane.api == api]
        longest = max(own, key=lambda lane: lane.paused_s)
        why = f"{longest.paused_in_words}: {longest.pause_reason or 'no reason given'}"
        yield Condition(kind=Kind.LANE, subject=api, holds=longest.paused_s > 0, reason=why)
        down = next((lane for lane in own if lane.held or lane.breaker != "closed"), None)
        why = (down.held or down.breaker_reason or "") if down else ""
        yield Condition(kind=Kind.API, subject=api, holds=down is not None, reason=why)


def of_memory(memory: str, workers: Sequence[WorkerStatus]) -> Condition:
    """Return the condition of Redis; ``memory`` is why producers wait for it, where they do."""
    reason = memory or next((worker.held for worker in workers if worker.held), "")
    return Condition(kind=Kind.MEMORY, subject="", holds=bool(reason), reason=reason)


def of_held(batch: BatchRecord) -> Condition:
    """Return whether a batch is held because nobody reads its outcomes."""
    holds = batch.full and not batch.ended
    reason = what_limits(batch, []) if holds else ""
    return Condition(kind=Kind.HELD, subject=batch.id, holds=holds, reason=reason, batch=batch)


def may_be_stuck(batch: BatchRecord, workers: Sequence[WorkerStatus], memory: str) -> bool:
    """Say whether a batch should have outcomes now, for nothing that is known keeps its calls from being made."""
    if batch.state is not BatchState.RUNNING or batch.full or batch.recorded >= batch.total or memory:
        return False
    lanes = lanes_of(batch, workers)
    held = any(worker.held for worker in serving(batch, workers))
    # A lane that makes calls makes those of others: this batch waits for its turn.
    explained = (
        lane.paused_s > 0 or lane.breaker != "closed" or lane.diverted_to or lane.limited_by or lane.rate > 0
        for lane in lanes
    )
    return not held and not any(explained)
