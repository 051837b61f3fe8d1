"""A chunk that has its process to itself for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

from virtual_time import VirtualLoop

from callmill.ledger import ChunkRef
from callmill.workers.isolation import Isolation


class Chunk:
    """A chunk that is over when the test says so."""

    def __init__(self, number: int) -> None:
        self.claim = SimpleNamespace(ref=ChunkRef("b", number, "api"), deaths=3, batch_name="")
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.closed = False

    def close(self) -> None:
        """Start no further calls."""
        self.closed = True


class Process:
    """A process with chunks, one of which wants to run alone."""

    def __init__(self, others: int = 0) -> None:
        self.alone, *self.others = (Chunk(number) for number in range(others + 1))
        self.room: list[str] = []
        room = SimpleNamespace(hold=lambda: self.room.append("hold"), resume=lambda: self.room.append("resume"))
        self.isolation = Isolation(cast("Any", room), lambda: cast("Any", [self.alone, *self.others]))
        self.entered = asyncio.Event()
        self.leave = asyncio.Event()

    async def turn(self) -> None:
        """Take a turn until the test ends it."""
        async with self.isolation.turn(cast("Any", self.alone)):
            self.entered.set()
            await self.leave.wait()


def play(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario on a clock that jumps to what happens next."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(asyncio.wait_for(scenario(), 3600))


def test_others_get_as_long_as_a_turn_took():
    """While a turn lasts no other may begin, nor after it for as long as it took, its wait included."""

    async def scenario() -> None:
        process = Process(others=1)
        assert process.isolation.free
        turn = asyncio.ensure_future(process.turn())
        await asyncio.sleep(2)
        process.others[0].over.set_result(None)
        await asyncio.sleep(5)
        assert process.entered.is_set()
        assert not process.isolation.free
        process.leave.set()
        await turn
        await asyncio.sleep(6.9)
        assert not process.isolation.free
        await asyncio.sleep(0.2)
        assert process.isolation.free

    play(scenario)


def test_a_turn_waits_for_every_other_chunk():
    """Every other chunk is closed and must be over before a turn begins, also one that came in meanwhile."""

    async def scenario() -> None:
        process = Process(others=2)
        turn = asyncio.ensure_future(process.turn())
        await asyncio.sleep(1)
        assert [chunk.closed for chunk in process.others] == [True, True]
        process.others.append(Chunk(9))
        for chunk in list(process.others):
            assert not process.entered.is_set()
            chunk.over.set_result(None)
            await asyncio.sleep(1)
        assert process.others[2].closed
        assert process.entered.is_set()
        assert (process.alone.closed, process.room) == (False, ["hold"])
        process.leave.set()
        await turn
        assert process.room == ["hold", "resume"]

    play(scenario)


def test_a_chunk_that_is_over_waits_for_nobody():
    """A chunk that ends while it waits for its turn does not wait for the others any more."""

    async def scenario() -> None:
        process = Process(others=1)
        turn = asyncio.ensure_future(process.turn())
        await asyncio.sleep(1)
        assert not process.entered.is_set()
        process.alone.over.set_result(None)
        await asyncio.sleep(1)
        assert process.entered.is_set()
        process.leave.set()
        await turn

    play(scenario)


def test_a_turn_that_fails_lets_others_in_again():
    """Whatever ends a turn, the process takes chunks in again afterwards."""

    async def scenario() -> None:
        process = Process()
        with suppress(ValueError):
            async with process.isolation.turn(cast("Any", process.alone)):
                assert process.isolation.taken
                raise ValueError
        assert (process.isolation.taken, process.room) == (False, ["hold", "resume"])

    play(scenario)
