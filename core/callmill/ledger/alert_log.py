"""AlertLog: what the alerts have told, and what they have yet to tell, in Redis and so for the whole fleet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from msgspec import Struct

from callmill.ledger import keys, scripts
from callmill.ledger.keys import BatchKeys
from callmill.ledger.records import BatchRecord
from callmill.ledger.scripts import AlertTellArguments
from callmill.ledger.session import LedgerSession

KEPT = 1000
"""Alerts that wait for their webhooks at most; of more the oldest are dropped."""


class AlertBatch(Struct, frozen=True, kw_only=True):
    """The batch that an alert is about."""

    id: str
    name: str
    state: str
    total: int
    succeeded: int
    failed: int


class Alert(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One change of state, as it is posted.

    Attributes:
        id: The same however often it is posted.
        event: What it tells of.
        at: When, ISO 8601.
        text: The same in words.
        api: The API that it is about.
        batch: The batch that it is about.
        reason: Why, in words.
        lasted_s: Seconds that what is over lasted.
    """

    id: str
    event: str
    at: str
    text: str
    api: str | None = None
    batch: AlertBatch | None = None
    reason: str | None = None
    lasted_s: float | None = None


class AlertState(Struct, frozen=True, omit_defaults=True):
    """One condition: what was told of it, and since when it is otherwise.

    Attributes:
        told: Whether the last word was that it holds.
        since_ms: Since when the opposite was seen; 0: it is as told.
        told_ms: When something was told of it last.
        began_ms: Since when it holds, or held last.
        times: How often it was told in close succession.
    """

    told: bool = False
    since_ms: int = 0
    told_ms: int = 0
    began_ms: int = 0
    times: int = 0


class BatchSeen(Struct, frozen=True):
    """A batch, and when its newest outcome was recorded (Unix time in milliseconds, to the second); 0: it has none."""

    record: BatchRecord
    last_outcome_ms: int


_encoder = msgspec.json.Encoder()
_state_decoder = msgspec.json.Decoder(AlertState)
_alert_decoder = msgspec.json.Decoder(Alert)


class AlertLog:
    """The states of conditions, the alerts that wait, and how far each webhook is."""

    def __init__(self, session: LedgerSession) -> None:
        self._session = session
        self._redis = session.redis

    async def now_ms(self) -> int:
        """Return the Unix time in milliseconds on the clock of Redis."""
        seconds, micros = await self._session.answer(self._redis.time())
        return int(seconds) * 1000 + int(micros) // 1000

    async def states(self) -> dict[str, AlertState]:
        """Return every condition that is, or lately was, out of the ordinary."""
        raw = await self._session.answer(self._redis.hgetall(keys.ALERT_STATES))
        return {field.decode(): _state_decoder.decode(state) for field, state in raw.items()}

    async def change(
        self, field: str, before: AlertState | None, after: AlertState | None, alert: Alert | None = None
    ) -> bool:
        """Change the state of a condition, and with it note the alert; False: another worker was first."""
        return await self._tell(
            AlertTellArguments(
                field=field, before=_encoded(before), after=_encoded(after), alert=_encoded(alert), kept=KEPT
            )
        )

    async def ended(self, limit: int) -> dict[str, BatchSeen | None]:
        """Return batches that ended and were not told of; None for those that are gone already."""
        ids = await self._session.answer(self._redis.zrange(keys.ENDED, 0, limit - 1))
        return await self.batches([batch_id.decode() for batch_id in ids])

    async def end_told(self, batch_id: str, alert: Alert | None) -> bool:
        """Take note of the end of a batch, and with it of the alert; False: another worker was first."""
        return await self._tell(AlertTellArguments(batch_id=batch_id, alert=_encoded(alert), kept=KEPT))

    async def longest_not_seen(self, limit: int, now_ms: int) -> list[str]:
        """Return so many active batches, those first that were returned longest ago."""
        raw = await self._session.answer(self._redis.zrange(keys.ACTIVE, 0, limit - 1))
        if raw:
            await self._session.answer(self._redis.zadd(keys.ACTIVE, dict.fromkeys(raw, now_ms), xx=True))
        return [batch_id.decode() for batch_id in raw]

    async def forget(self, batch_id: str) -> None:
        """Take note that an active batch is gone."""
        await self._session.answer(self._redis.zrem(keys.ACTIVE, batch_id))

    async def batches(self, batch_ids: Sequence[str]) -> dict[str, BatchSeen | None]:
        """Return batches as they stand, in one round trip; None for those that are gone.

        Those that only a newer Callmill can read are left out, and left to its workers.
        """
        pipeline = self._redis.pipeline(transaction=False)
        for names in map(BatchKeys, batch_ids):
            pipeline.hgetall(names.meta)
            pipeline.hvals(names.rate)
        answers = iter(await self._session.answer(pipeline.execute()) if batch_ids else [])
        seen: dict[str, BatchSeen | None] = {}
        for batch_id, meta, ring in zip(batch_ids, answers, answers, strict=True):
            record = BatchRecord.read(batch_id, meta) if meta else None
            if record is None or not record.newer:
                seen[batch_id] = BatchSeen(record, _newest_ms(ring)) if record else None
        return seen

    async def all_wait(self, batch_id: str) -> bool:
        """Say whether a batch's unfinished chunks, those that one look shows, all wait for the time of a retry."""
        _, page = await self._session.answer(self._redis.hscan(BatchKeys(batch_id).state, count=100))
        states = [state.split(b"|")[1] for state in page.values()]
        unfinished = [state for state in states if state != b"D"]
        return bool(unfinished) and all(state == b"W" for state in unfinished)

    async def next(
        self, webhook: str, worker: str, *, lease_s: float, told: str = "", limit: int = 20
    ) -> list[tuple[str, Alert]]:
        """Return what a webhook has yet to be told, oldest first; for so long no other worker gets it.

        Args:
            webhook: The webhook's name.
            worker: Who asks.
            lease_s: How long the others keep away, from now on.
            told: What the worker has told it since it asked last; empty: nothing.
            limit: Alerts at most.
        """
        call = scripts.ALERT_NEXT.call(
            scripts.AlertNextKeys(alerts=keys.ALERTS, sent=keys.ALERTS_SENT, sender=keys.alert_sender(webhook)),
            scripts.AlertNextArguments(
                webhook=webhook, worker=worker, lease_ms=int(lease_s * 1000), told=told, limit=limit
            ),
        )
        entries = await self._session.run(call)
        return [(entry_id.decode(), _alert_decoder.decode(fields[1])) for entry_id, fields in entries]

    async def _tell(self, arguments: AlertTellArguments) -> bool:
        names = scripts.AlertTellKeys(states=keys.ALERT_STATES, alerts=keys.ALERTS, ended=keys.ENDED)
        return bool(await self._session.run(scripts.ALERT_TELL.call(names, arguments)))


def _newest_ms(ring: Iterable[bytes]) -> int:
    return max((int(slot.split()[0]) for slot in ring), default=0) * 1000


def _encoded(value: Alert | AlertState | None) -> str:
    return "" if value is None else _encoder.encode(value).decode()
