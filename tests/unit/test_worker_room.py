"""Who enters a line of a worker when."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from callmill.config.profiles import ApiProfile
from callmill.jobs.line import Line
from callmill.jobs.traffic import Priority, TrafficClass
from callmill.ledger import ChunkRef
from callmill.workers import room as room_module
from callmill.workers.room import Room
from callmill.workers.served_lines import ServedLines


class _FullLane:
    """A lane with all the work that it takes in; nothing paces it, unless the test says so."""

    def __init__(self, *, paced: bool = False) -> None:
        self.paced = paced
        self.is_full = True
        self.asked = asyncio.Event()
        self.dropped: list[Any] = []

    def has_room(self, _: Any) -> bool:
        self.asked.set()
        return not self.is_full

    def share(self, _: Any) -> float:
        return 1.0

    def drop(self, traffic: Any) -> None:
        self.dropped.append(traffic)


class _Switch:
    """Queues that are consumed or not, as they are told."""

    def __init__(self) -> None:
        self.off: set[str] = set()

    def set(self, line: str, *, on: bool) -> None:
        (self.off.discard if on else self.off.add)(line)

    def serve(self, lines: Any) -> None:
        """Which lines there are is of no interest here."""

    def is_off(self, line: str) -> bool:
        return line in self.off


def _served() -> ServedLines:
    return ServedLines({"api": ApiProfile(name="api", base_url="https://api.test")})


@pytest.mark.parametrize("waiting", [0, 3])
def test_what_was_put_back_does_not_wait_for_room(waiting):
    """A chunk that goes first enters a full line at once, also where others wait for room there."""

    async def enter() -> bool:
        lane = _FullLane()
        room = Room(cast("Any", {"api": lane}), cast("Any", _Switch()), _served(), threads=16)

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


def test_a_chunk_waits_for_room_in_a_paced_line():
    """It enters as soon as there is room, and as long as it waits no more chunks are fetched."""

    async def scenario() -> None:
        lane, switch = _FullLane(paced=True), _Switch()
        room = Room(cast("Any", {"api": lane}), cast("Any", switch), _served(), threads=16)

        async def enter(number: int) -> bool:
            async with room.enter(Line("api"), ChunkRef("b", number, "api")) as entered:
                return entered

        switch.set("api", on=False)
        waiting = [asyncio.create_task(enter(number)) for number in range(3)]
        await lane.asked.wait()
        lane.is_full = False
        room.look()
        assert "api" in switch.off
        assert await asyncio.gather(*waiting) == [True] * 3
        room.look()
        assert "api" not in switch.off

    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_a_chunk_waits_for_no_room_that_does_not_come(monkeypatch):
    """Chunks that find no room in a paced line in time are left to others, each after its own time."""
    monkeypatch.setattr(room_module, "_PATIENCE_S", 0.05)

    async def scenario() -> list[bool]:
        room = Room(cast("Any", {"api": _FullLane(paced=True)}), cast("Any", _Switch()), _served(), threads=16)

        async def enter(number: int) -> bool:
            async with room.enter(Line("api"), ChunkRef("b", number, "api")) as entered:
                return entered

        return await asyncio.gather(*(enter(number) for number in range(3)))

    assert asyncio.run(asyncio.wait_for(scenario(), 10)) == [False] * 3


def test_a_class_is_forgotten_with_the_last_of_its_lines():
    """A line of another format that goes leaves the class to the line that shares it."""
    lane = _FullLane()
    room = Room(cast("Any", {"api": lane}), cast("Any", _Switch()), _served(), threads=16)
    bulk = TrafficClass(Priority.BULK)
    both = [Line("api", bulk), Line("api", bulk, 2)]
    room.serve([*both, Line("api", format=2)])
    room.serve(both[:1])
    assert lane.dropped == []
    room.serve([])
    assert lane.dropped == [bulk]


def test_a_chunk_that_comes_in_ends_the_rest():
    """A room with no chunk and nothing switched off is at rest, until one comes: who waits for that hears at once."""

    async def scenario() -> None:
        room = Room(cast("Any", {"api": _FullLane()}), cast("Any", _Switch()), _served(), threads=16)
        assert room.at_rest
        resting = asyncio.create_task(room.stirred(3600))
        await asyncio.sleep(0)
        async with room.enter(Line("api"), ChunkRef("b", 1, "api"), first=True):
            assert not room.at_rest
            await resting
        assert room.at_rest

    asyncio.run(asyncio.wait_for(scenario(), 10))
