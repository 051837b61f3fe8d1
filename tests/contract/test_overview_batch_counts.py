"""How many batches are in which state, and how many are stuck."""

from __future__ import annotations

import asyncio

from callmill.config.redis_connections import connect
from callmill.jobs.wire import Chunk, WireJob, encode_chunk
from callmill.ledger import Batches, LedgerSession
from callmill.ledger.alert_log import AlertLog, AlertState
from callmill.overview.batch_counts import count_batches
from callmill.workers.alert_conditions import Condition, Kind


def counted(redis_url, scenario):
    """Return the counts after a scenario."""

    async def main():
        async with connect(redis_url) as redis:
            session = LedgerSession(redis)
            await scenario(redis, Batches(session))
            return await count_batches(session)

    return asyncio.run(main())


def test_batches_are_counted_by_state(redis_url):
    """Every batch counts in the state that it is in, one that ended as over, and a deleted one no more."""

    async def scenario(_, batches: Batches) -> None:
        ids = [await batches.create("", retention_ms=60_000) for _ in range(6)]
        for batch_id in ids:
            payload = encode_chunk(Chunk("crm", 0, [WireJob("GET", "/")]))
            await batches.add(batch_id, 0, [("crm", payload)], park=False)
        for batch_id in ids[1:]:
            await batches.seal(batch_id)
        await batches.control(ids[2], "paused")
        await batches.control(ids[3], "cancelled")
        await batches.delete(ids[4])

    seen = counted(redis_url, scenario)
    assert seen.by_state == {"submitting": 1, "running": 2, "paused": 1, "cancelled": 0, "over": 1}
    assert seen.stuck == 0


def test_without_batches_every_state_counts_none(redis_url):
    """A state that no batch is in is told as 0 and not left out: rates and alerts need the series."""

    async def scenario(*_) -> None:
        pass

    assert set(counted(redis_url, scenario).by_state.values()) == {0}


def test_stuck_are_those_that_were_told(redis_url):
    """A batch is stuck when the alerts have told so: not while it is only suspected, nor for another alert of it."""

    async def scenario(redis, _) -> None:
        log = AlertLog(LedgerSession(redis))
        for kind, subject, told in ((Kind.STUCK, "a", True), (Kind.STUCK, "b", False), (Kind.HELD, "c", True)):
            condition = Condition(kind=kind, subject=subject, holds=True)
            assert await log.change(condition.field, None, AlertState(told=told, since_ms=5))

    assert counted(redis_url, scenario).stuck == 1
