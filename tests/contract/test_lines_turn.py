"""Lines beyond those that a worker can consume at once take turns, and no turn looks at all of them."""

from __future__ import annotations

import asyncio

import redis

from callmill.config.redis_connections import connect
from callmill.jobs.line import Line
from callmill.jobs.traffic import TrafficClass
from callmill.ledger import LedgerSession, Lines, keys
from callmill.ledger.lines import MOST_LINES


def line(number: int) -> Line:
    """Return the line of a tenant."""
    return Line("api", TrafficClass(tenant=f"t{number}"))


def test_every_line_with_a_chunk_has_its_turn(redis_url):
    """Of 3,000 lines, 300 with a chunk, each is served within five turns, the newest in each, none without a chunk."""
    with redis.Redis.from_url(redis_url) as connection:
        for number in range(3000):
            connection.zadd(keys.LINES, {str(line(number)): number})
            if number % 10 == 0:
                connection.zadd(keys.queued(str(line(number))), {"b:0": 1})

    async def turns() -> list[list[Line]]:
        broker = connect(redis_url)
        try:
            lines = Lines(LedgerSession(broker))
            return [await lines.in_turn() for _ in range(8)]
        finally:
            await broker.aclose()

    served = asyncio.run(turns())
    assert all(len(turn) <= MOST_LINES for turn in served)
    assert all(line(2990) in turn for turn in served)
    assert {each for turn in served for each in turn} == {line(number) for number in range(0, 3000, 10)}


def test_few_lines_are_all_served(redis_url):
    """As many lines as a worker can consume are served all the time, whether something waits in them or not."""
    with redis.Redis.from_url(redis_url) as connection:
        for number in range(MOST_LINES):
            connection.zadd(keys.LINES, {str(line(number)): number})

    async def turn() -> list[Line]:
        broker = connect(redis_url)
        try:
            return await Lines(LedgerSession(broker)).in_turn()
        finally:
            await broker.aclose()

    assert set(asyncio.run(turn())) == {line(number) for number in range(MOST_LINES)}
