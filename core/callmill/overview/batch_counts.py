"""How many batches are in which state, and how many are stuck.

What it costs grows with the batches that are not over, never with their jobs, nor with batches that are over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from msgspec import Struct

from callmill.ledger import keys
from callmill.ledger.alert_log import AlertLog
from callmill.ledger.keys import BatchKeys
from callmill.ledger.records import BatchState
from callmill.ledger.session import LedgerSession

OVER = "over"

_STUCK = "stuck:"
_AT_ONCE = 1000


class BatchCounts(Struct, frozen=True, kw_only=True):
    """How many batches there are.

    Attributes:
        by_state: State -> batches; ``over``: those that ended and are still kept.
        stuck: Those of which the alerts' watch, which a worker keeps, has told that they do not move.
    """

    by_state: Mapping[str, int]
    stuck: int


async def count_batches(session: LedgerSession) -> BatchCounts:
    """Count the batches.

    Raises:
        RedisUnavailableError: Redis cannot be reached or refused.
    """
    pipeline = session.redis.pipeline(transaction=False)
    pipeline.zcard(keys.BATCHES)
    pipeline.zrange(keys.ACTIVE, 0, -1)
    kept, active = await session.answer(pipeline.execute())
    counts = Counter[str]()
    for start in range(0, len(active), _AT_ONCE):
        counts += await _states(session, active[start : start + _AT_ONCE])
    alerts = await AlertLog(session).states()
    return BatchCounts(
        by_state={
            **{state.value: counts[state] for state in BatchState if state is not BatchState.DONE},
            OVER: max(0, kept - counts.total()),
        },
        stuck=sum(field.startswith(_STUCK) and state.told for field, state in alerts.items()),
    )


async def _states(session: LedgerSession, ids: list[bytes]) -> Counter[str]:
    pipeline = session.redis.pipeline(transaction=False)
    for batch_id in ids:
        pipeline.hmget(BatchKeys(batch_id.decode()).meta, "control", "phase")
    answers = await session.answer(pipeline.execute())
    return Counter(
        BatchState.read(control, phase, ended=False).value for control, phase in answers if control is not None
    )
