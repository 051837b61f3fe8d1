"""Sorted sets that all batches share, with members that name no chunk, as whoever may write can leave them."""

from __future__ import annotations

import asyncio

import redis.asyncio

from callmill.ledger import Batches, ChunkRef, Chunks, LedgerSession, keys
from callmill.ledger.lines import Lines

STRANGE = ["", "x", "a/b/c", "a/1", "a/1/b/c", "\udcff", "b/99999999999999999999999999/near", "//"]


def test_strange_members_hold_up_nothing(redis_url):
    """What names no chunk is forgotten, and the chunks behind it are put back and found as ever."""

    async def scenario():
        async with redis.asyncio.Redis.from_url(redis_url) as connection:
            session = LedgerSession(connection)
            batch_id = await Batches(session).create("good", retention_ms=60_000)
            for index in (keys.DUE, keys.queued("near"), keys.LINES):
                strange = {member.encode(errors="surrogateescape"): 1 for member in STRANGE}
                await connection.zadd(index, strange)
            await connection.zadd(keys.queued("near"), {ChunkRef(batch_id, 0, "near").member: 2})
            chunks = Chunks(session, worker="w")
            await chunks.requeue_due()
            found = await chunks.stranded(["near"], 1)
            assert ChunkRef(batch_id, 0, "near") in found
            assert {ref.api for ref in found} <= {"near"}
            assert len(await connection.zrange(keys.DUE, 0, -1)) <= 1
            await Lines(session).used()
            await Lines(session).newer()

    asyncio.run(scenario())
