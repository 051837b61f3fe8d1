"""A call outside any batch: what its caller is told, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

import pytest
from virtual_time import VirtualLoop

from callmill.jobs.trace_context import TraceContext
from callmill.jobs.traffic import NORMAL
from callmill.jobs.wire import WireJob
from callmill.workers.call import Call, Postponed
from callmill.workers.outcomes import outcome_without_answer
from callmill.workers.single_call import HELD_PATIENCE_S, CallNotDoneError, SingleCall

AGAIN = Postponed("http_500", "500 of the API")
FREE = Postponed("throttled", "429", spends_attempt=False, throttled=True)


class HoldingLane:
    """A lane that starts calls when the test says so, and whose API may be held."""

    api = "crm"

    def __init__(self) -> None:
        self.line: list[Call] = []
        self.held = ""
        self.forgot = 0

    def add(self, _owner: Any, calls: Sequence[Call], *, first: int = 0) -> None:  # noqa: ARG002 - the port's signature
        """Take calls in."""
        self.line += calls

    def add_first(self, call: Call) -> None:
        """Take a call in that has waited already."""
        self.line.append(call)

    def forget(self, owner: Any) -> None:
        """Drop what waits."""
        self.forgot += 1
        self.line = [call for call in self.line if call.owner is not owner]


class Asked:
    """A call of somebody who waits for it."""

    def __init__(self, deadline_in_s: float | None = None, **options: Any) -> None:
        self.lane = HoldingLane()
        self.single = SingleCall(WireJob("GET", "/"), cast("Any", self.lane), "key", **options)
        self.single.begin(deadline_in_s)

    def start(self) -> Call:
        """Start the call."""
        call = self.lane.line.pop()
        assert self.single.may_start(call, now_s())
        self.single.started(call)
        return call

    def end(self, call: Call) -> None:
        """Let the attempt succeed."""
        self.single.record(call, outcome_without_answer(call, None, None))

    @property
    def code(self) -> str | None:
        """What the outcome says."""
        return self.single.outcome.result().error_code

    @property
    def over(self) -> bool:
        """Whether the caller has been told."""
        return self.single.outcome.done()


def now_s() -> float:
    """Return the loop's time."""
    return asyncio.get_running_loop().time()


def play(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario on a clock that jumps to what happens next; no timer may be left."""

    async def watched() -> None:
        await asyncio.wait_for(scenario(), 3600)
        await asyncio.sleep(0)
        loop: Any = asyncio.get_running_loop()
        assert [timer for timer in loop._scheduled if not timer.cancelled()] == []

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(watched())


def test_the_first_outcome_is_the_callers():
    """The caller gets the first outcome; nothing that comes later changes it, or starts the call."""

    async def scenario() -> None:
        asked = Asked(60.0, repeated=True, trace=cast("TraceContext", "trace"))
        call = asked.start()
        assert (call.repeated, call.trace, call.key) == (True, "trace", "key")
        asked.end(call)
        asked.single.refuse(call, outcome_without_answer(call, "deadline", ""))
        asked.single.interrupted(call)
        asked.single.postpone(call, AGAIN)
        asked.single.postpone(call, FREE)
        assert (asked.code, asked.lane.line, asked.single.may_start(call, now_s())) == (None, [], False)

    play(scenario)


def test_another_attempt_is_the_callers():
    """A failure that spends an attempt is told to the caller, who decides on the next one."""

    async def scenario() -> None:
        asked = Asked()
        assert (asked.single.traffic, asked.lane.line[0].repeated) == (NORMAL, False)
        asked.single.postpone(asked.start(), AGAIN)
        with pytest.raises(CallNotDoneError, match="http_500: 500 of the API"):
            await asked.single.outcome
        assert asked.lane.line == []

    play(scenario)


def test_an_attempt_that_was_cut_off_is_told():
    """The caller hears that its call was interrupted, and the lane forgets nothing that is in flight."""

    async def scenario() -> None:
        asked = Asked()
        asked.single.interrupted(asked.start())
        with pytest.raises(CallNotDoneError, match="interrupted"):
            await asked.single.outcome
        assert asked.lane.forgot == 0

    play(scenario)


def test_a_free_attempt_is_made_at_once():
    """What spends no attempt sends the call back into line, which it leaves if its caller waits no longer."""

    async def scenario() -> None:
        asked = Asked()
        call = asked.start()
        asked.single.postpone(call, FREE)
        assert (asked.lane.line, asked.over) == ([call], False)
        asked.single.outcome.cancel()
        await asyncio.sleep(0)
        assert asked.lane.forgot == 1

    play(scenario)


@pytest.mark.parametrize("in_s", [0.0, -1.0])
def test_a_call_that_is_too_late_is_not_made(in_s):
    """A deadline that has passed already fails the call, and the lane never hears of it."""

    async def scenario() -> None:
        asked = Asked(in_s)
        assert asked.lane.line == []
        await asked.single.outcome
        assert asked.code == "deadline"

    play(scenario)


def test_a_deadline_ends_the_wait():
    """A call that has not started by its deadline fails then, and leaves the line."""

    async def scenario() -> None:
        asked = Asked(3.0)
        assert asked.lane.line[0].deadline_s == now_s() + 3.0
        await asyncio.sleep(2.99)
        assert not asked.over
        await asyncio.sleep(0.02)
        assert (asked.code, asked.lane.line, asked.lane.forgot) == ("deadline", [], 1)

    play(scenario)


def test_a_deadline_ends_no_attempt_but_all_further_ones():
    """An attempt under way at the deadline may end well; if it does not, even a free one comes too late."""

    async def scenario() -> None:
        well, badly = Asked(3.0), Asked(3.0)
        calls = well.start(), badly.start()
        await asyncio.sleep(3.01)
        assert not well.over
        assert not badly.over
        well.end(calls[0])
        badly.single.postpone(calls[1], FREE)
        assert (well.code, badly.code, badly.lane.line) == (None, "deadline", [])

    play(scenario)


def test_a_held_api_fails_a_call_after_a_while():
    """A call that waits for an API that is held fails when its patience ends, and says why."""

    async def scenario() -> None:
        asked = Asked()
        await asyncio.sleep(2 * HELD_PATIENCE_S + 0.01)
        assert not asked.over
        asked.lane.held = "its key is refused"
        await asyncio.sleep(HELD_PATIENCE_S - 0.02)
        assert not asked.over
        await asyncio.sleep(0.02)
        with pytest.raises(CallNotDoneError, match="crm is held: its key is refused"):
            asked.single.outcome.result()
        assert asked.lane.line == []

    play(scenario)


def test_a_call_under_way_is_not_failed_because_its_api_is_held():
    """The call that tests a held API may end, and is looked at again if it does not."""

    async def scenario() -> None:
        asked = Asked()
        asked.lane.held = "its key is refused"
        call = asked.start()
        await asyncio.sleep(HELD_PATIENCE_S + 0.01)
        assert not asked.over
        asked.single.postpone(call, FREE)
        await asyncio.sleep(HELD_PATIENCE_S)
        with pytest.raises(CallNotDoneError):
            asked.single.outcome.result()

    play(scenario)
