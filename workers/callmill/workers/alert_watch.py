"""AlertWatch: looks at what goes on, and notes once for the whole fleet what has changed.

One worker at a time looks, the one that reconciles. What was told is in Redis: who looks next goes on from there, and a
change enters the stream of alerts in the step that marks it told. A look costs the same however many batches there are:
of the active ones each shows some, those that were seen longest ago.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from callmill.config.alert_policy import AlertEvent
from callmill.ledger import LedgerSession
from callmill.ledger.alert_log import Alert, AlertLog, AlertState, BatchSeen
from callmill.ledger.fleet import Fleet, WorkerStatus
from callmill.ledger.memory import MemoryGauge, Role
from callmill.overview.progress import what_limits
from callmill.workers import alert_conditions as conditions
from callmill.workers import alert_texts as texts
from callmill.workers.alert_conditions import RULES, Condition, Kind, advance, subject_of

log = logging.getLogger(__name__)

STUCK_AFTER_S = 600.0

_BATCHES_A_LOOK = 25
_ENDED_A_LOOK = 50
_BATCHES_FOLLOWED = 200
"""Batches whose state is remembered at most: those are looked at every time."""

GOOD_NEWS = frozenset({AlertEvent.BATCH_DONE, AlertEvent.BATCH_GOES_ON, AlertEvent.LANE_RESUMED, AlertEvent.API_UP})
_CALL = "call"
"""Name of the batches of ``client.call``: their callers wait for them."""


class AlertWatch:
    """Belongs to one event loop.

    Args:
        session: The ledger.
        gauge: The memory of Redis.
        stuck_after_s: Seconds without an outcome after which a batch that should run counts as stuck.
    """

    def __init__(self, session: LedgerSession, *, gauge: MemoryGauge, stuck_after_s: float = STUCK_AFTER_S) -> None:
        self._log = AlertLog(session)
        self._fleet = Fleet(session)
        self._gauge = gauge
        self._stuck_after_s = stuck_after_s

    async def look(self, now_ms: int | None = None) -> None:
        """Look once; the time is that of Redis unless one is given.

        Raises:
            RedisUnavailableError: Redis cannot be reached.
        """
        now_ms = await self._log.now_ms() if now_ms is None else now_ms
        states = await self._log.states()
        workers = await self._fleet.workers()
        memory = await self._gauge.why_wait(Role.PRODUCER)
        for condition in [*conditions.of_apis(workers), conditions.of_memory(memory, workers)]:
            await self._note(condition, states, now_ms)
        await self._look_at_ends()
        await self._look_at_batches(states, workers, memory, now_ms)

    async def _look_at_ends(self) -> None:
        for batch_id, seen in (await self._log.ended(_ENDED_A_LOOK)).items():
            record = seen.record if seen else None
            if record is None or (record.total == 1 and record.name == _CALL):
                await self._log.end_told(batch_id, None)
            elif record.ended:  # else it runs again, and its end will be another one
                alert = texts.of_end(record)
                if await self._log.end_told(batch_id, alert):
                    _say(alert)

    async def _look_at_batches(
        self, states: Mapping[str, AlertState], workers: list[WorkerStatus], memory: str, now_ms: int
    ) -> None:
        followed = dict.fromkeys(subject for kind, subject in map(subject_of, states) if kind and kind.of_batch)
        others = await self._log.longest_not_seen(_BATCHES_A_LOOK, now_ms)
        for batch_id, seen in (await self._log.batches(list(dict.fromkeys([*followed, *others])))).items():
            if seen is None or seen.record.ended:
                await self._log.forget(batch_id)
                for field in (f"{kind}:{batch_id}" for kind in Kind if kind.of_batch):
                    if field in states:
                        await self._log.change(field, states[field], None)
                continue
            for condition in (conditions.of_held(seen.record), await self._stuck(seen, workers, memory, now_ms)):
                if condition.field in states or (condition.holds and len(followed) < _BATCHES_FOLLOWED):
                    await self._note(condition, states, now_ms)
                    followed[batch_id] = None

    async def _stuck(self, seen: BatchSeen, workers: list[WorkerStatus], memory: str, now_ms: int) -> Condition:
        """See it after half of the time without an outcome; it is told after as long of nothing that explains it."""
        holds, batch = False, seen.record
        if conditions.may_be_stuck(batch, workers, memory):
            silent_ms = now_ms - max(seen.last_outcome_ms, batch.sealed_ms)
            holds = silent_ms >= self._stuck_after_s / 2 * 1000 and not await self._log.all_wait(batch.id)
        reason = what_limits(batch, workers, memory) if holds else ""
        return Condition(kind=Kind.STUCK, subject=batch.id, holds=holds, reason=reason, batch=batch)

    async def _note(self, condition: Condition, states: Mapping[str, AlertState], now_ms: int) -> None:
        before, rule = states.get(condition.field), RULES[condition.kind]
        if condition.kind is Kind.STUCK:
            rule = conditions.Rule(rule.begins, rule.ends, self._stuck_after_s / 2, rule.rests_s)
        after, tell = advance(before, rule, holds=condition.holds, now_ms=now_ms)
        if after == before:
            return
        alert = texts.of_condition(condition, after, now_ms) if tell and after is not None else None
        if condition.kind.of_batch and after is not None and not after.told and not after.since_ms:
            after = None  # a batch is not followed for longer than need be
        if await self._log.change(condition.field, before, after, alert) and alert is not None:
            _say(alert)


def _say(alert: Alert) -> None:
    level = logging.INFO if alert.event in GOOD_NEWS else logging.WARNING
    batch = alert.batch
    about = {"api": alert.api} if batch is None else {"batch": batch.id, "batch_name": batch.name}
    log.log(level, "%s", alert.text.removeprefix("Callmill: "), extra={"action": alert.event, **about})
