"""Calls of one chunk, one after the other, each noted before it starts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

import pytest
from virtual_time import VirtualLoop

from callmill.errors import CallmillError, RedisUnavailableError, StaleLeaseError
from callmill.jobs.traffic import NORMAL
from callmill.jobs.wire import WireJob
from callmill.workers.call import Call, Postponed
from callmill.workers.one_by_one import OneByOne
from callmill.workers.outcomes import outcome_without_answer
from callmill.workers.suspicion import NO_JOB

NOTE_S = 0.1
AGAIN = Postponed("http_500", "")


class Owner:
    """A chunk that notes what it is told of its calls."""

    traffic = NORMAL

    def __init__(self) -> None:
        self.open = True
        self.told: list[tuple[str, int]] = []

    def may_start(self, _call: Call, _now_s: float) -> bool:
        """Say whether calls may still start."""
        return self.open

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda call, *_: self.told.append((name, call.offset))


class Stage:
    """A lane and a ledger around calls that run one by one; a note takes a while."""

    def __init__(self, jobs: int = 3, *, first: int | None = None) -> None:
        self.owner = Owner()
        self.line: list[Call] = []
        self.notes: list[int] = []
        self.trouble: CallmillError | None = None
        self.told: list[Any] = []
        self.turns = OneByOne(cast("Any", self), NORMAL, self._note, first=first)
        assert self.turns.traffic == NORMAL
        self.calls = [Call(WireJob("GET", "/"), cast("Any", self.owner), n, n, "") for n in range(jobs)]

    async def _note(self, offset: int) -> None:
        await asyncio.sleep(NOTE_S)
        if self.trouble is not None:
            raise self.trouble
        self.notes.append(offset)

    def add(self, owner: Any, calls: Sequence[Call]) -> None:
        """Take a call in, which the turns own."""
        assert [call.owner for call in calls] == [owner] == [self.turns]
        self.line += calls

    def forget(self, owner: Any) -> None:
        """Drop calls of an owner."""
        self.told.append(owner)
        self.line.clear()

    def will_retry(self, call: Call, *, wanted: bool) -> None:
        """Take note."""
        self.told.append((call, wanted))

    def retry_wait_s(self, call: Call) -> float:
        """Let a call wait."""
        return call.offset + 0.5

    async def begin(self) -> None:
        """Take all calls in, and let the first one be noted."""
        self.turns.add(cast("Any", self.owner), self.calls)
        await settled()

    async def end(self, how: str = "record") -> int:
        """Make the call that is in line, end it in one way, and let the next one be noted; return its offset."""
        (call,) = self.line
        self.line.clear()
        assert self.turns.may_start(call, now_s())
        self.turns.started(call)
        if how == "postpone":
            self.turns.postpone(call, AGAIN)
        elif how == "interrupted":
            self.turns.interrupted(call)
        else:
            getattr(self.turns, how)(call, outcome_without_answer(call, None, None))
        await settled()
        return call.offset


async def settled() -> None:
    """Let notes be taken."""
    await asyncio.sleep(3 * NOTE_S)


def now_s() -> float:
    """Return the loop's time."""
    return asyncio.get_running_loop().time()


def play(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario on a clock that jumps to what happens next."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(asyncio.wait_for(scenario(), 3600))


@pytest.mark.parametrize("how", ["record", "refuse", "postpone", "interrupted"])
def test_the_owner_hears_of_each_end_and_the_next_call_comes(how):
    """However an attempt ends, its owner is told, and the next call is noted and goes to the lane."""

    async def scenario() -> None:
        stage = Stage(2)
        await stage.begin()
        assert (await stage.end(how), stage.notes) == (0, [0, 1])
        assert stage.owner.told == [("started", 0), (how, 0)]
        assert [call.offset for call in stage.line] == [1]

    play(scenario)


def test_calls_come_back_in_front_or_behind_as_their_refusals_say():
    """A call that comes back goes before those that wait, or behind them once it was refused twice."""

    async def scenario() -> None:
        stage = Stage(4, first=2)
        await stage.begin()
        assert await stage.end("postpone") == 2
        stage.turns.add_first(stage.calls[2])
        stage.calls[0].throttles = 2
        assert await stage.end("postpone") == 0
        stage.turns.add_first(stage.calls[0])
        assert [await stage.end() for _ in range(4)] == [2, 1, 3, 0]
        assert stage.notes == [2, 0, 2, 1, 3, 0, NO_JOB]

    play(scenario)


def test_a_call_that_comes_back_alone_is_acquitted_first():
    """A note is withdrawn when its attempt is over, and made again for the next attempt of the same call."""

    async def scenario() -> None:
        stage = Stage(1)
        await stage.begin()
        await stage.end("postpone")
        assert stage.notes == [0, NO_JOB]
        stage.turns.add_first(stage.calls[0])
        await settled()
        await stage.end()
        assert stage.notes == [0, NO_JOB, 0, NO_JOB]

    play(scenario)


def test_a_note_that_cannot_be_withdrawn_hurts_nobody():
    """Where the lease is lost, or Redis away, when everything is over, nothing fails."""

    async def scenario() -> None:
        tasks: list[asyncio.Task[Any]] = []

        def keep(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
            tasks.append(asyncio.Task(coroutine, loop=loop, **options))
            return tasks[-1]

        asyncio.get_running_loop().set_task_factory(keep)
        for trouble in (StaleLeaseError("stale"), RedisUnavailableError("away")):
            stage = Stage(1)
            await stage.begin()
            stage.trouble = trouble
            await stage.end()
        assert [task.exception() for task in tasks] == [None] * 4  # a note of the call and its withdrawal, twice

    play(scenario)


def test_a_lost_lease_starts_nothing():
    """Where another worker holds the chunk no call of it reaches the lane."""

    async def scenario() -> None:
        stage = Stage()
        stage.trouble = StaleLeaseError("stale")
        await stage.begin()
        await asyncio.sleep(60)
        assert (stage.line, stage.notes) == ([], [])

    play(scenario)


def test_a_chunk_that_is_closed_during_a_note_starts_nothing():
    """A call whose chunk is closed while it is noted does not reach the lane, nor does any other."""

    async def scenario() -> None:
        stage = Stage()
        stage.turns.add(cast("Any", stage.owner), stage.calls)
        await asyncio.sleep(NOTE_S / 2)
        stage.owner.open = False
        stage.turns.forget(cast("Any", stage.owner))
        await settled()
        assert (stage.line, stage.told, stage.notes) == ([], [stage.turns], [0, NO_JOB])

    play(scenario)


def test_a_chunk_that_is_closed_while_redis_is_away_waits_for_nothing():
    """A call that could not be noted is not noted any more once its chunk is closed."""

    async def scenario() -> None:
        stage = Stage()
        stage.trouble = RedisUnavailableError("away")
        await stage.begin()
        stage.owner.open = False
        stage.turns.forget(cast("Any", stage.owner))
        stage.trouble = None
        await asyncio.sleep(60)
        assert (stage.line, stage.notes) == ([], [])

    play(scenario)


def test_the_retry_budget_is_the_lanes():
    """Who asks for a retry, or announces one, asks the lane."""

    async def scenario() -> None:
        stage = Stage()
        call = stage.calls[1]
        assert stage.turns.retry_wait_s(call) == 1.5
        stage.turns.will_retry(call, wanted=True)
        stage.turns.will_retry(call, wanted=False)
        assert stage.told == [(call, True), (call, False)]

    play(scenario)
