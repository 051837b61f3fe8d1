"""Rows of refusals, as a pace that nobody wrote down begins with them, on a real Redis."""

from __future__ import annotations

import asyncio
import time

import pytest
from redis.asyncio import Redis

from callmill.jobs.traffic import NORMAL
from callmill.limits.layout import layout, learned_nodes
from callmill.limits.permits import Answers
from callmill.limits.rules import LimitRules
from callmill.limits.store import LimitStore, Refusal

TAKEN, PER_S = 8, 16.0


@pytest.mark.parametrize("refused_before_s", [None, 300, 86_400])
def test_a_row_whose_first_waves_nobody_told_of_began_just_now(redis_url, refused_before_s):
    """Where the earlier refusals of a row taught nothing of the pace, it begins near to what the API took."""

    async def pace_per_s() -> float:
        async with Redis.from_url(redis_url, decode_responses=True) as redis:
            await redis.flushall()
            store, rules = LimitStore(redis, "row", "w"), LimitRules()
            (node,) = learned_nodes(rules, store.keys)
            if refused_before_s is not None:
                await redis.hset(store.keys.meta, "epoch", str((time.time() - refused_before_s) * 1e6))
            answers = Answers(TAKEN, TAKEN * 5e3, TAKEN * 25e6)
            await store.permits("", want=8, used=0, held=0, limit=0, ttl_us=10**7, answers=answers)
            refusal = Refusal(
                layout=layout(rules, store.keys, "", NORMAL),
                key=1,
                scope="",
                permits=4,
                workers=1.0,
                what="",
                in_a_row=2,
                crowded=False,
                wanted=True,
                asked_s=0.0,
                begins=node,
                started_s=0.05,
                refused_s=0.01,
                taken_per_s=PER_S,
            )
            await store.refused(refusal)
            pace = await redis.hgetall(node.key)
            return float(pace["factor"]) * float(pace["amount"]) / float(pace["window"]) * 1e6

    assert asyncio.run(pace_per_s()) >= PER_S / 4
