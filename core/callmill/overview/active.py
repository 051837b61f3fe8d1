"""The batches that are not over: how many in which state, and which of them do not move.

What it costs grows with such batches, never with their jobs, nor with batches that are over.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from callmill.ledger import keys
from callmill.ledger.fleet import WorkerStatus
from callmill.ledger.keys import BatchKeys
from callmill.ledger.records import BatchRecord, BatchState
from callmill.ledger.session import LedgerSession
from callmill.overview.api_now import ApiNow

STUCK_AFTER_S = 600.0
"""A batch that should run and had no outcome for so long is stuck."""

_AT_ONCE = 500
_NEXT_START_SOON_S = 60.0


class ActiveBatch(Struct, frozen=True, kw_only=True):
    """A batch that is not over; ``quiet_s``: seconds since its last outcome, or since it was sealed without one."""

    record: BatchRecord
    quiet_s: float


class ActiveBatches(Struct, frozen=True, kw_only=True):
    """All of them; ``over``: how many others the ledger still keeps."""

    active: Sequence[ActiveBatch]
    over: int

    def by_state(self) -> dict[str, int]:
        """Return how many batches are in each state, and how many are over."""
        states = [batch.record.state for batch in self.active]
        return {
            **{state.value: states.count(state) for state in BatchState if state is not BatchState.DONE},
            "over": self.over,
        }

    def stuck(self, apis: Iterable[ApiNow], workers: Sequence[WorkerStatus]) -> list[BatchRecord]:
        """Return those that have been quiet for long although nothing that is known holds them back."""
        held_back = {api.api for api in apis if _is_held_back(api, workers)}
        return [
            batch.record
            for batch in self.active
            if batch.record.state is BatchState.RUNNING
            and not batch.record.full
            and batch.quiet_s >= STUCK_AFTER_S
            and not held_back.intersection(batch.record.apis)
        ]


async def read_active(session: LedgerSession) -> ActiveBatches:
    """Look at every batch that is not over.

    Raises:
        RedisUnavailableError: Redis cannot be reached or refused.
    """
    pipeline = session.redis.pipeline(transaction=False)
    pipeline.zcard(keys.BATCHES)
    pipeline.zrange(keys.ACTIVE, 0, -1)
    kept, ids = await session.answer(pipeline.execute())
    active: list[ActiveBatch] = []
    for start in range(0, len(ids), _AT_ONCE):
        active += await _look(session, [batch_id.decode() for batch_id in ids[start : start + _AT_ONCE]])
    return ActiveBatches(active=active, over=max(0, kept - len(active)))


async def _look(session: LedgerSession, ids: Sequence[str]) -> list[ActiveBatch]:
    pipeline = session.redis.pipeline(transaction=False)
    pipeline.time()
    for names in map(BatchKeys, ids):
        pipeline.hgetall(names.meta)
        pipeline.hvals(names.rate)
    (now_s, _), *answers = await session.answer(pipeline.execute())
    looks = zip(ids, answers[::2], answers[1::2], strict=True)
    return [_active(BatchRecord.read(batch_id, meta), ring, now_s) for batch_id, meta, ring in looks if meta]


def _active(record: BatchRecord, ring: Iterable[bytes], now_s: int) -> ActiveBatch:
    began_s = (record.sealed_ms or record.created_ms) / 1000
    last_s = max([began_s, *(float(slot.split()[0]) for slot in ring)])
    return ActiveBatch(record=record, quiet_s=max(0.0, now_s - last_s))


def _is_held_back(api: ApiNow, workers: Sequence[WorkerStatus]) -> bool:
    far = api.next_start_s is not None and api.next_start_s >= _NEXT_START_SOON_S
    nobody_free = all(worker.held or api.api not in worker.apis for worker in workers)
    return api.paused or api.breaker != "closed" or far or nobody_free
