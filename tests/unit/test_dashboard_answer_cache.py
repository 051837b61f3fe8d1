"""One answer for all who ask within a moment."""

from __future__ import annotations

import asyncio

import pytest

from callmill.dashboard.answer_cache import AnswerCache
from callmill.errors import BatchNotFoundError, RedisUnavailableError


class Source:
    """What is read: it counts, and may be slow or broken."""

    def __init__(self) -> None:
        self.reads = 0
        self.failing: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def read(self) -> bytes:
        """Read once."""
        self.reads += 1
        number = self.reads
        await self.gate.wait()
        if self.failing:
            raise self.failing
        return b"%d" % number


def test_answers_serve_all_until_they_are_old():
    """Whoever asks while an answer is read or fresh gets that one; an old one is read anew, and so is a cleared one."""

    async def scenario():
        source, cache = Source(), AnswerCache(for_s=30, timeout_s=30)
        assert await asyncio.gather(*(cache.get("a", source.read) for _ in range(5))) == [b"1"] * 5
        assert await cache.get("a", source.read) == b"1"
        assert await cache.get("b", source.read) == b"2"
        cache.clear()
        assert await cache.get("a", source.read) == b"3"
        brief = AnswerCache(for_s=0, timeout_s=30)
        assert [await brief.get("a", source.read), await brief.get("a", source.read)] == [b"4", b"5"]

    asyncio.run(scenario())


def test_failures_are_answers_too():
    """A failure serves all who ask in that moment, so that a broken Redis is not asked more often for being broken."""

    async def scenario():
        source, cache = Source(), AnswerCache(for_s=30, timeout_s=30)
        source.failing = BatchNotFoundError("gone")
        for _ in range(3):
            with pytest.raises(BatchNotFoundError):
                await cache.get("a", source.read)
        assert source.reads == 1

    asyncio.run(scenario())


def test_slow_reads_end():
    """What takes too long counts as Redis not answering."""

    async def scenario():
        source, cache = Source(), AnswerCache(for_s=30, timeout_s=0.01)
        source.gate.clear()
        with pytest.raises(RedisUnavailableError, match="did not answer"):
            await cache.get("a", source.read)

    asyncio.run(scenario())


def test_who_goes_away_takes_nothing_along():
    """One who stops waiting does not end the read that others wait for."""

    async def scenario():
        source, cache = Source(), AnswerCache(for_s=30, timeout_s=30)
        source.gate.clear()
        first = asyncio.ensure_future(cache.get("a", source.read))
        second = asyncio.ensure_future(cache.get("a", source.read))
        await asyncio.sleep(0)
        first.cancel()
        source.gate.set()
        assert await second == b"1"

    asyncio.run(scenario())


def test_answers_are_bounded_in_number():
    """However many different things are asked for, few answers are kept."""

    async def scenario():
        source, cache = Source(), AnswerCache(for_s=30, timeout_s=30)
        for number in range(1000):
            await cache.get(str(number), source.read)
        assert await cache.get("999", source.read) == b"1000"
        assert await cache.get("0", source.read) == b"1001"

    asyncio.run(scenario())
