"""The batches that are not over: how many in which state, and which do not move."""

from __future__ import annotations

import asyncio

import pytest

from callmill.config.public_api import PublicApi
from callmill.config.redis_connections import connect
from callmill.jobs.wire import Chunk, WireJob, encode_chunk
from callmill.ledger import Batches, LedgerSession
from callmill.ledger.fleet import LaneStatus, WorkerStatus
from callmill.ledger.keys import BatchKeys
from callmill.ledger.records import BatchRecord, BatchState
from callmill.limits.control import ControlState
from callmill.overview.active import STUCK_AFTER_S, ActiveBatch, ActiveBatches, read_active
from callmill.overview.api_now import summed_up

API = PublicApi(name="crm", base_url="https://crm.example.com")


def record(**changes):
    """Return a running batch."""
    facts = {
        "id": "b", "name": "", "state": BatchState.RUNNING, "sealed": True, "ended": False, "total": 9, "chunks": 1,
        "succeeded": 0, "failed": 0, "calls": 0, "retries": 0, "throttled": 0, "leased": 0, "created_ms": 1,
        "sealed_ms": 1, "ended_ms": 0, "apis": ["crm"],
    }  # fmt: skip
    return BatchRecord(**{**facts, **changes})


def worker(held="", **lane):
    """Return a worker that serves the API."""
    return WorkerStatus(
        id="w", host="h", pid=1, started_ms=1, calls=0, cpu_s=0.0, draining=False, apis=["crm"], held=held,
        lanes=[LaneStatus(api="crm", in_flight=0, waiting=1, **lane)],
    )  # fmt: skip


def stuck(batch, *workers, quiet_s=STUCK_AFTER_S):
    """Say whether a batch that has been quiet so long counts as stuck with these workers."""
    active = ActiveBatches(active=[ActiveBatch(record=batch, quiet_s=quiet_s)], over=0)
    api = summed_up(API, ControlState(generation=0, limits=None, pause=None, keys={}), workers)
    return active.stuck([api], workers) != []


def test_a_running_batch_without_outcomes_is_stuck():
    """A batch that runs, has been quiet for the whole time, and is held back by nothing that is known, is stuck."""
    assert stuck(record(), worker())
    assert not stuck(record(), worker(), quiet_s=STUCK_AFTER_S - 1)


@pytest.mark.parametrize(
    ("batch", "workers"),
    [
        (record(state=BatchState.PAUSED), [worker()]),
        (record(state=BatchState.SUBMITTING, sealed=False), [worker()]),
        (record(state=BatchState.CANCELLED), [worker()]),
        (record(full=True), [worker()]),
        (record(), []),
        (record(), [worker(held="no memory")]),
        (record(), [worker(paused_s=30.0)]),
        (record(), [worker(breaker="open")]),
        (record(), [worker(next_start_s=3600.0)]),
        (record(apis=["crm", "other"]), [worker(paused_s=30.0)]),
    ],
)
def test_a_batch_that_something_holds_back_is_not_stuck(batch, workers):
    """A pause, a missing reader, a missing worker, an open breaker, a far limit: they are told elsewhere."""
    assert not stuck(batch, *workers)


def test_batches_are_counted_by_state(redis_url):
    """Every batch counts in the state that it is in, those that ended as over; a deleted one no more."""

    async def scenario():
        async with connect(redis_url) as redis:
            session = LedgerSession(redis)
            batches = Batches(session)
            ids = [await batches.create("", retention_ms=60_000) for _ in range(6)]
            for batch_id in ids:
                payload = encode_chunk(Chunk("crm", 0, [WireJob("GET", "/")]))
                await batches.add(batch_id, 0, [("crm", payload)], park=False)
            for batch_id in ids[1:]:
                await batches.seal(batch_id)
            await batches.control(ids[2], "paused")
            await batches.control(ids[3], "cancelled")
            await batches.delete(ids[4])
            return await read_active(session)

    seen = asyncio.run(scenario())
    assert seen.by_state() == {"submitting": 1, "running": 2, "paused": 1, "cancelled": 0, "over": 1}
    assert all(batch.record.apis == ["crm"] for batch in seen.active)
    assert all(batch.quiet_s < 60 for batch in seen.active)


def test_a_batch_is_quiet_since_its_last_outcome(redis_url):
    """What counts is the latest second in which an outcome was recorded; before the first one, when it was sealed."""

    async def scenario():
        async with connect(redis_url) as redis:
            session = LedgerSession(redis)
            batches = Batches(session)
            batch_id = await batches.create("", retention_ms=60_000)
            names = BatchKeys(batch_id)
            now_s, _ = await redis.time()
            await redis.hset(names.meta, mapping={"phase": "sealed", "sealed_ms": (now_s - 900) * 1000})
            (before,) = (await read_active(session)).active
            await redis.hset(names.rate, mapping={"1": f"{now_s - 700} 5", "2": f"{now_s - 300} 1"})
            (after,) = (await read_active(session)).active
            return before.quiet_s, after.quiet_s

    before_s, after_s = asyncio.run(scenario())
    assert 899 <= before_s < 960
    assert 299 <= after_s < 360
