"""Costs shared through a real Redis: every process knows what the fleet saw."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from local_nodes import free_port
from redis.asyncio import Redis

from callmill.limits.cost_sharing import CostSharing
from callmill.limits.costs import MEMORY, MOST_KINDS, CostBook, Tally
from callmill.limits.keys import Keys

KEY = Keys("api").costs


def run(url: str, steps: Callable[[Redis], Awaitable[None]]) -> None:
    """Run steps with a client."""

    async def main() -> None:
        async with Redis.from_url(url) as redis:
            await steps(redis)

    asyncio.run(main())


@asynccontextmanager
async def sharing(redis: Redis) -> AsyncIterator[tuple[CostBook, CostSharing]]:
    """Return the book of one process, in step with the fleet's."""
    book = CostBook()
    shared = CostSharing(redis, "api", book)
    await shared.start()
    try:
        yield book, shared
    finally:
        await shared.aclose()


def calls(count: int, tokens: int) -> Tally:
    """Return calls that cost the same."""
    return Tally(count, count * tokens, count * tokens**2)


def test_a_new_process_begins_with_what_the_fleet_knows(redis_url):
    """What two processes saw, also between their last exchange and their end, a third one knows at its start."""

    async def steps(redis: Redis) -> None:
        async with sharing(redis) as (first, first_sharing), sharing(redis) as (second, _):
            first.add("all:m", calls(10, 100))
            await first_sharing.exchange()
            second.add("all:m", calls(30, 500))
        async with sharing(redis) as (third, _):
            assert third["all:m"] == Tally(40, 16_000, 10 * 100**2 + 30 * 500**2)

    run(redis_url, steps)


def test_an_exchange_tells_what_others_saw(redis_url):
    """A process that asks for a kind of calls, or tells of one, knows afterwards what all others told before."""

    async def steps(redis: Redis) -> None:
        async with sharing(redis) as (first, first_sharing), sharing(redis) as (second, second_sharing):
            first.add("all:m", calls(10, 100))
            await first_sharing.exchange()
            assert second["all:m"].count == 0
            await second_sharing.exchange()
            assert second["all:m"] == calls(10, 100)
            second.add("all:m", calls(10, 200))
            await second_sharing.exchange()
            first.add("all:m", calls(10, 300))
            await first_sharing.exchange()
            assert first["all:m"].mean == 200

    run(redis_url, steps)


def test_older_calls_fade(redis_url):
    """The fleet remembers so many calls and no more; newer ones take the place of older ones."""

    async def steps(redis: Redis) -> None:
        async with sharing(redis) as (book, shared):
            for tokens in (100, 100, 500):
                book.add("all:m", calls(MEMORY // 2, tokens))
                await shared.exchange()
            assert book["all:m"].count == pytest.approx(MEMORY)
            assert book["all:m"].mean == pytest.approx(300)

    run(redis_url, steps)


def test_kinds_are_bounded(redis_url):
    """Names without end fill neither Redis nor a process."""

    async def steps(redis: Redis) -> None:
        async with sharing(redis) as (book, shared):
            for number in range(MOST_KINDS + 10):
                book.add(f"all:{number}", calls(1, 1))
            await shared.exchange()
            assert await redis.hlen(KEY) == MOST_KINDS
            late = CostBook()
            late.add("all:new", calls(1, 1))
            late.add("all:1", calls(1, 3))
            await CostSharing(redis, "api", late).exchange()
            assert await redis.hlen(KEY) == MOST_KINDS
            assert (late["all:new"], late["all:1"].mean) == (calls(1, 1), 2)

    run(redis_url, steps)


def test_without_redis_a_process_learns_alone(redis_url):
    """While Redis is away what was seen here is known here; it is told when Redis is back."""

    async def steps(redis: Redis) -> None:
        async with Redis.from_url(f"redis://127.0.0.1:{free_port()}") as nowhere:
            book = CostBook()
            alone = CostSharing(nowhere, "api", book)
            await alone.start()
            book.add("all:m", calls(10, 100))
            await alone.aclose()
            assert book["all:m"] == calls(10, 100)
        async with sharing(redis) as (_, shared):
            shared._book = book
        async with sharing(redis) as (other, _):
            assert other["all:m"] == calls(10, 100)

    run(redis_url, steps)


def test_what_nobody_needs_goes_away(redis_url):
    """The fleet's knowledge has an end of its own when no process adds to it any more."""

    async def steps(redis: Redis) -> None:
        async with sharing(redis) as (book, _):
            book.add("all:m", calls(1, 1))
        assert 0 < await redis.ttl(KEY) <= 30 * 86400

    run(redis_url, steps)
