"""Forgets what is gone from the lists of batches and workers: views leave it out, and write nothing."""

from __future__ import annotations

import secrets

from callmill.ledger import keys
from callmill.ledger.keys import BatchKeys
from callmill.ledger.session import LedgerSession

_AT_ONCE = 200
_WORKERS_KEPT_S = 3600


async def forget_gone(session: LedgerSession) -> None:
    """Forget some of the batches whose retention is over, and workers that have not reported for an hour.

    Raises:
        RedisUnavailableError: Redis cannot be reached or refused.
    """
    pipeline = session.redis.pipeline(transaction=False)
    pipeline.time()
    pipeline.zcard(keys.BATCHES)
    (now_s, _), known = await session.answer(pipeline.execute())
    start = secrets.randbelow(max(known, 1))  # batches that are kept for long must not hide those behind them
    pipeline = session.redis.pipeline(transaction=False)
    pipeline.zremrangebyscore(keys.WORKERS, "-inf", (now_s - _WORKERS_KEPT_S) * 1000)
    pipeline.zrange(keys.BATCHES, 0, _AT_ONCE - 1)
    pipeline.zrange(keys.BATCHES, start, start + _AT_ONCE - 1)
    _, oldest, some = await session.answer(pipeline.execute())
    ids = list(dict.fromkeys([*oldest, *some]))
    pipeline = session.redis.pipeline(transaction=False)
    for batch_id in ids:
        pipeline.exists(BatchKeys(batch_id.decode(errors="replace")).meta)
    found = await session.answer(pipeline.execute())
    gone = [batch_id for batch_id, there in zip(ids, found, strict=True) if not there]
    if gone:
        await session.answer(session.redis.zrem(keys.BATCHES, *gone))
