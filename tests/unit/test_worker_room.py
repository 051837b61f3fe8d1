"""Who enters a line of a worker when."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from callmill.jobs.line import Line
from callmill.jobs.traffic import Priority, TrafficClass
from callmill.ledger import ChunkRef
from callmill.workers.room import Room


class _FullLane:
    """A lane that nothing paces, with all the work that it takes in."""

    paced = False

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.dropped: list[Any] = []

    def has_room(self, _: Any) -> bool:
        self.asked.set()
        return False

    def share(self, _: Any) -> float:
        return 1.0

    def drop(self, traffic: Any) -> None:
        self.dropped.append(traffic)


class _Switch:
    def set(self, line: str, *, on: bool) -> None:
        """No queue is consumed here."""

    def serve(self, lines: Any) -> None:
        """As above."""


@pytest.mark.parametrize("waiting", [0, 3])
def test_what_was_put_back_does_not_wait_for_room(waiting):
    """A chunk that goes first enters a full line at once, also where others wait for room there."""

    async def enter() -> bool:
        lane = _FullLane()
        room = Room(cast("Any", {"api": lane}), cast("Any", _Switch()), threads=16)

        async def wait(number: int) -> None:
            async with room.enter(Line("api"), ChunkRef("b", number, "api")):
                pytest.fail("there was no room")

        others = [asyncio.ensure_future(wait(number)) for number in range(waiting)]
        if waiting:
            await lane.asked.wait()
        async with room.enter(Line("api"), ChunkRef("b", 9, "api"), first=True) as entered:
            for other in others:
                other.cancel()
            return entered

    assert asyncio.run(asyncio.wait_for(enter(), 10))


def test_a_class_is_forgotten_with_the_last_of_its_lines():
    """A line of another format that goes leaves the class to the line that shares it."""
    lane = _FullLane()
    room = Room(cast("Any", {"api": lane}), cast("Any", _Switch()), threads=16)
    bulk = TrafficClass(Priority.BULK)
    both = [Line("api", bulk), Line("api", bulk, 2)]
    room.serve([*both, Line("api", format=2)])
    room.serve(both[:1])
    assert lane.dropped == []
    room.serve([])
    assert lane.dropped == [bulk]
