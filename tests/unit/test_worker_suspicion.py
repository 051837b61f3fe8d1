"""How a chunk is run after its workers died, and what that says about its jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from types import SimpleNamespace

import pytest

from callmill.errors import RedisUnavailableError
from callmill.jobs.traffic import NORMAL
from callmill.jobs.wire import Chunk, WireJob
from callmill.ledger import ChunkRef, Claim, Finish, Suspect
from callmill.workers import one_by_one
from callmill.workers.call import Call, CallOwner, Postponed
from callmill.workers.chunk_run import ChunkRun
from callmill.workers.isolation import Isolation
from callmill.workers.one_by_one import OneByOne
from callmill.workers.outcomes import outcome_without_answer
from callmill.workers.suspicion import NO_JOB, Stage, noted_when_read, stage_of


def claim(deaths: int, suspect: Suspect | None = None, *, jobs: int = 4, recorded: Iterable[int] = ()) -> Claim:
    """Return a claim after so many deaths."""
    return Claim(
        ref=ChunkRef("b", 0, "api"), fence=1, payload=b"", recorded=frozenset(recorded), attempts={}, not_before_ms={},
        claims=deaths, now_ms=0, count=jobs, deaths=deaths, suspect=suspect,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("deaths", "suspect", "recorded", "stage"),
    [
        (0, None, (), Stage.TOGETHER),
        (2, None, (), Stage.TOGETHER),
        (3, None, (), Stage.ALONE),
        (4, Suspect(None, 0), (), Stage.ALONE),  # noted, then given back: nothing died with it
        (4, Suspect(None, 1), (), Stage.ONE_BY_ONE),
        (5, Suspect(None, 2), (), Stage.ONE_BY_ONE),  # the second one died while it read the chunk
        (6, Suspect(None, 3), (), Stage.CONVICT_ALL),
        (5, Suspect(2, 0), (), Stage.ONE_BY_ONE),
        (5, Suspect(2, 1), (), Stage.ONE_BY_ONE),  # an innocent that was alone once
        (6, Suspect(2, 2), (), Stage.ONE_BY_ONE),
        (6, Suspect(NO_JOB, 9), (), Stage.ONE_BY_ONE),  # whatever ended those workers
        (7, Suspect(2, 3), (), Stage.CONVICT),
        (7, Suspect(2, 3), (2,), Stage.ALONE),
        (6, Suspect(2, 1), (2,), Stage.ONE_BY_ONE),
    ],
)
def test_stages_follow_from_deaths(deaths, suspect, recorded, stage):
    """Three deaths isolate a chunk, one alone its jobs, three with a job convict it, three of readers convict all."""
    assert stage_of(claim(deaths, suspect, recorded=recorded)) is stage


def test_the_only_job_of_a_chunk_is_noted_itself():
    """A chunk of which one job is left needs no turn as a chunk to tell which job it is."""
    assert noted_when_read(claim(3, jobs=3), Stage.ALONE) is None
    assert noted_when_read(claim(3, jobs=3, recorded=(0, 2)), Stage.ALONE) == 1


class FakeLane:
    """A lane whose calls start and end when the test says so."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.heard = asyncio.Event()

    def add(self, owner: CallOwner, calls: Sequence[Call], *, first: int = 0) -> None:  # noqa: ARG002 - the port's
        """Take calls in."""
        self.calls += calls
        self.heard.set()
        assert all(call.owner is owner for call in self.calls)

    def add_first(self, call: Call) -> None:
        """Take a call in before the others."""
        self.calls.insert(0, call)

    def forget(self, owner: CallOwner) -> None:
        """Drop an owner's calls."""
        self.calls = [call for call in self.calls if call.owner is not owner]

    def will_retry(self, call: Call, *, wanted: bool) -> None:
        """Nothing to note: every retry is free."""

    def retry_wait_s(self, _call: Call) -> float:
        """Let every call go on at once."""
        return 0.0

    def end(self, postponed: Postponed | None = None) -> int:
        """Make the next call; return its offset."""
        call = self.calls.pop(0)
        assert call.owner.may_start(call, asyncio.get_running_loop().time())
        call.owner.started(call)
        if postponed is None:
            call.owner.record(call, outcome_without_answer(call, None, None))
        else:
            call.owner.postpone(call, postponed)
        return call.offset


class Scene:
    """One chunk, its lane, and what it told its recorder."""

    def __init__(self, of: Claim) -> None:
        self.lane = FakeLane()
        self.noted: list[int] = []
        self.finish: Finish | None = None
        self.failing_notes = 0
        stage, first = stage_of(of), of.suspect.offset if of.suspect else None
        caller = OneByOne(self.lane, NORMAL, self.note, first=first) if stage is Stage.ONE_BY_ONE else self.lane
        self.run = ChunkRun(
            of,
            Chunk("api", 0, [WireJob("GET", "/")] * of.count),
            caller,
            self,
            traffic=NORMAL,
            lease_ends_s=float("inf"),
        )

    async def note(self, offset: int) -> None:
        """Take a note down."""
        if self.failing_notes:
            self.failing_notes -= 1
            raise RedisUnavailableError
        assert offset == NO_JOB or not self.lane.calls, "another job is out"
        self.noted.append(offset)

    def changed(self, run: ChunkRun, size_bytes: int = 0) -> None:
        """Do nothing."""

    def finished(self, run: ChunkRun, finish: Finish) -> None:
        """Keep how the chunk was given up."""
        self.finish = finish
        run.recorded()

    @property
    def deaths(self) -> int:
        """Deaths that stand against the chunk when it is given up."""
        assert self.finish is not None, "not given up"
        return self.finish.deaths


async def settle() -> None:
    """Let everything happen that can."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_deaths_are_forgotten_after_a_regular_end():
    """A chunk that got to try something and gave up by itself, or for its time, is harmless again."""

    async def scenario() -> None:
        whole, timed_out = Scene(claim(2)), Scene(claim(4, Suspect(None, 0)))
        for scene in (whole, timed_out):
            scene.run.begin()
            scene.lane.end()
        timed_out.run._time_is_over()
        while whole.lane.calls:
            whole.lane.end()
        assert (whole.deaths, timed_out.deaths) == (0, 0)

    asyncio.run(scenario())


def test_deaths_stand_while_nothing_was_shown():
    """A chunk that was closed from outside, or could try nothing in its time, is as suspect as before."""

    async def scenario() -> None:
        closed, idle, searched = Scene(claim(2)), Scene(claim(3)), Scene(claim(4, Suspect(None, 1)))
        for scene in (closed, idle, searched):
            scene.run.begin()
        closed.lane.end()
        closed.run.close()
        idle.run._time_is_over()
        await settle()
        searched.lane.end()
        searched.run._time_is_over()
        assert (closed.deaths, idle.deaths, searched.deaths) == (2, 3, 4)

    asyncio.run(scenario())


def test_a_closed_chunk_does_not_begin():
    """A chunk that is closed while it waits for its turn alone goes back untouched."""

    async def scenario() -> None:
        scene = Scene(claim(3))
        scene.run.close()
        scene.run.begin()
        assert (scene.lane.calls, scene.deaths) == ([], 3)

    asyncio.run(scenario())


def test_one_by_one_has_one_job_out_and_notes_it_before():
    """Every job is noted before it starts, the suspect first; what was survived is noted anew."""

    async def scenario() -> None:
        scene = Scene(claim(5, Suspect(2, 1), recorded=(1,)))
        scene.run.begin()
        order = []
        for postponed in (None, Postponed("http_500", "", 0.0), None, None):
            await settle()
            assert (len(scene.lane.calls), scene.noted[-1]) == (1, scene.lane.calls[0].offset)
            order.append(scene.lane.end(postponed))
        await settle()
        assert (order, scene.noted) == ([2, 0, 0, 3], [2, 0, NO_JOB, 0, 3, NO_JOB])
        assert scene.deaths == 0

    asyncio.run(scenario())


def test_one_by_one_passes_over_a_job_that_is_too_late():
    """A job whose time is over while it waits for its slot does not hold up those behind it."""

    async def scenario() -> None:
        scene = Scene(claim(4, Suspect(None, 1), jobs=2))
        scene.run.begin()
        await settle()
        late = scene.lane.calls.pop()
        scene.run.refuse(late, outcome_without_answer(late, "deadline", ""))
        assert not late.owner.may_start(late, 0)
        await settle()
        assert scene.lane.end() == 1
        assert scene.deaths == 0

    asyncio.run(scenario())


def test_nothing_starts_that_could_not_be_noted(monkeypatch):
    """While Redis is away no job starts alone; when it is back, the same one is noted and starts."""
    monkeypatch.setattr(one_by_one, "_NOTE_AGAIN_S", 0.001)

    async def scenario() -> None:
        scene = Scene(claim(4, Suspect(None, 1), jobs=1))
        scene.failing_notes = 2
        scene.run.begin()
        while scene.failing_notes:
            assert not scene.lane.calls
            await asyncio.sleep(0.001)
        await asyncio.wait_for(scene.lane.heard.wait(), 10)
        assert (scene.lane.end(), scene.noted) == (0, [0])

    asyncio.run(scenario())


def test_only_the_convicted_job_fails_and_nothing_is_called():
    """A verdict ends the chunk's turn with one outcome: the record of it comes before any other job is noted."""

    async def scenario() -> None:
        scene = Scene(claim(7, Suspect(2, 3)))
        scene.run.begin()
        ((offset, outcome),) = scene.run.bundle.outcomes
        assert (offset, outcome.index, outcome.error_code, scene.lane.calls) == (2, 2, "poison", [])
        assert "3 died while nothing but this job ran, after 4" in outcome.error_message
        assert scene.deaths == 7

    asyncio.run(scenario())


def test_a_turn_begins_when_everything_else_is_over():
    """Who runs alone waits until the process has given all other chunks back, takes nothing in, and rests after it."""

    async def scenario() -> None:
        room = SimpleNamespace(held=False)
        room.hold, room.resume = lambda: setattr(room, "held", True), lambda: setattr(room, "held", False)
        alone, other = Scene(claim(3)), Scene(claim(0))
        other.run.begin()
        call = other.lane.calls[0]
        other.run.started(call)
        isolation = Isolation(room, lambda: [alone.run, other.run])
        entered = asyncio.Event()
        leave = asyncio.Event()

        async def turn() -> None:
            async with isolation.turn(alone.run):
                entered.set()
                await leave.wait()

        task = asyncio.ensure_future(turn())
        await settle()
        assert (room.held, isolation.free, entered.is_set()) == (True, False, False)
        assert not other.run.may_start(other.lane.calls[0] if other.lane.calls else call, 0)
        other.run.record(call, outcome_without_answer(call, None, None))
        await entered.wait()
        leave.set()
        await task
        assert (room.held, isolation.taken, isolation.free) == (False, False, False)
        await asyncio.sleep(isolation._rests_until_s - asyncio.get_running_loop().time())
        assert isolation.free

    asyncio.run(scenario())
