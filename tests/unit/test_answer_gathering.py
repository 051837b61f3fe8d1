"""AnswerGathering: the loop's thread stops for a moment after answers, where many come."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from callmill.workers.transports import answer_gathering as module
from callmill.workers.transports.answer_gathering import AnswerGathering


class Clock:
    """A clock that only sleeping and the test move."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        """The time."""
        return self.now_s

    def sleep(self, seconds: float) -> None:
        """Sleep."""
        self.pauses.append(seconds)
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: Any) -> Clock:
    """What the module takes for time."""
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def answers(clock: Clock, per_s: float, *, count: int, at_once: int = 1) -> None:
    """Let answers come at a pace, some of them in the same turn of the loop."""

    async def main() -> None:
        gathering = AnswerGathering()
        for number in range(1, count + 1):
            clock.now_s += 1 / per_s
            gathering.answered()
            if number % at_once == 0:
                await asyncio.sleep(0)

    asyncio.run(main())


def test_few_answers_are_never_waited_for(clock):
    """Answers that come seldom stop nothing."""
    answers(clock, module.MANY_PER_S / 2, count=1000)
    assert clock.pauses == []


def test_many_answers_share_a_pause(clock):
    """Where many come, each turn of the loop that brought any is followed by one pause, however many it brought."""
    answers(clock, module.MANY_PER_S * 4, count=1000, at_once=10)
    assert 95 <= len(clock.pauses) <= 100
    assert set(clock.pauses) == {module.PAUSE_S}


def test_pauses_end_with_the_rush(clock):
    """When answers come seldom again, the pauses stop."""

    async def main() -> None:
        gathering = AnswerGathering()
        for apart_s in [0.1 / module.MANY_PER_S] * 100 + [10 / module.MANY_PER_S] * 100:
            clock.now_s += apart_s
            gathering.answered()
            await asyncio.sleep(0)
        before = len(clock.pauses)
        assert before > 50
        for _ in range(100):
            clock.now_s += 10 / module.MANY_PER_S
            gathering.answered()
            await asyncio.sleep(0)
        assert len(clock.pauses) == before

    asyncio.run(main())
