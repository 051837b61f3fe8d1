"""The breaker's gate in one process: what it decides by itself between two exchanges."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from callmill.breaker import BreakerRules, BreakerState, BreakerView, Report
from callmill.errors import RedisUnavailableError
from callmill.jobs.wire import WireJob
from callmill.workers.breaker_gate import BreakerGate
from callmill.workers.call import Call
from callmill.workers.retry_tokens import RetryTokens
from callmill.workers.transports.port import Response
from callmill.workers.verdict import SUCCEEDED, Retryable

DOWN = (Retryable("http_503", "503"), Response(503, {}, b""))
OWN_FAULT = (Retryable("http_500", "500"), Response(500, {}, b""))
OPEN = BreakerView(state=BreakerState.OPEN, epoch=1, probe_in_s=9.0, reason="down")


class ScriptedStore:
    """Answers exchanges with what a test set last, and keeps the reports."""

    rules = BreakerRules()

    def __init__(self) -> None:
        self.answer: BreakerView | Exception = BreakerView()
        self.reports: list[Report] = []

    async def exchange(self, report: Report, _epoch: int) -> BreakerView:
        """Answer."""
        self.reports.append(report)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Play:
    """A gate and its store."""

    def __init__(self) -> None:
        self.store = ScriptedStore()
        self.gate = BreakerGate("x", cast("Any", self.store), on_news=lambda: None, has_work=lambda: True)

    def call(self, attempts: int = 0) -> Call:
        """Return a call that has spent so many attempts."""
        call = Call(WireJob("GET", "/"), cast("Any", None), 0, 0, "")
        call.attempts = attempts
        return call

    def make(self, call: Call, verdict: Any, answer: Response | None, *, sent: bool = True) -> int:
        """Let a call start and end."""
        ticket = self.gate.started()
        self.gate.judged(ticket, call, verdict, answer, sent=sent)
        self.gate.over(ticket)
        return ticket

    async def exchange(self, answer: BreakerView | Exception) -> Report:
        """Exchange once, and return what was reported."""
        self.store.answer = answer
        await self.gate._exchange()
        return self.store.reports[-1]


@pytest.fixture
def play() -> Callable[[Callable[[Play], Any]], None]:
    """Return what runs a scene on a loop."""

    def run(scene: Callable[[Play], Any]) -> None:
        async def main() -> None:
            await scene(Play())

        asyncio.run(main())

    return run


def test_the_attempt_that_opens_it_is_spared(play):
    """The twentieth failure closes the gate at once, without waiting for Redis, and is not the call's fault."""

    async def scene(p: Play) -> None:
        for _ in range(19):
            assert not p.gate.spares(p.make(p.call(), *DOWN))
        assert p.gate.spares(p.make(p.call(), *DOWN))
        assert p.gate.startable == 0

    play(scene)


def test_attempts_spent_on_finding_out_are_given_back(play):
    """When it turns out that the API is down, calls that failed lately have their attempts back."""

    async def scene(p: Play) -> None:
        calls = [p.call(1), p.call(3)]
        for call in calls:
            p.gate.spent(call)
        await p.exchange(OPEN)
        assert [call.attempts for call in calls] == [0, 2]

    play(scene)


def test_repeated_failures_of_a_call_count_once_where_it_may_be_at_fault(play):
    """A 500 counts for the first attempt only; a 503, and a connection that was refused, count each time."""

    async def scene(p: Play) -> None:
        refused = Retryable("connect", "refused")
        for attempts in range(4):
            p.make(p.call(attempts), *OWN_FAULT)
            p.make(p.call(attempts), *DOWN)
            p.make(p.call(attempts), refused, None, sent=False)
            p.make(p.call(attempts), Retryable("timeout", "timeout"), None)
        report = await p.exchange(BreakerView())
        assert (report.bad, report.ok, report.failed, report.calls) == (1 + 4 + 4 + 1, 0, 16, 16)

    play(scene)


def test_answers_that_are_no_failures_count_as_good(play):
    """A 4xx that is retried shows that the API is there."""

    async def scene(p: Play) -> None:
        p.make(p.call(), Retryable("http_408", "408"), Response(408, {}, b""))
        p.make(p.call(), SUCCEEDED, Response(200, {}, b""))
        report = await p.exchange(BreakerView())
        assert (report.ok, report.bad, report.streak) == (2, 0, 0)

    play(scene)


def test_calls_of_an_earlier_epoch_count_nothing_and_are_spared(play):
    """A call that started before it opened, and fails after it closed, is nobody's evidence and spends nothing."""

    async def scene(p: Play) -> None:
        early = p.gate.started()
        await p.exchange(OPEN)
        await p.exchange(BreakerView(epoch=2))
        p.gate.judged(early, p.call(), *DOWN, sent=True)
        assert p.gate.spares(early)
        assert (await p.exchange(BreakerView(epoch=2))).bad == 0

    play(scene)


def test_no_more_probes_start_than_were_granted(play):
    """While it is open one call may start for each probe granted; what becomes of it is told."""

    async def scene(p: Play) -> None:
        await p.exchange(OPEN)
        assert p.gate.startable == 0
        half = BreakerView(state=BreakerState.HALF_OPEN, epoch=1, probes=1)
        await p.exchange(half)
        assert p.gate.startable == 1
        p.make(p.call(), SUCCEEDED, Response(200, {}, b""))
        assert p.gate.startable == 0
        report = await p.exchange(half)
        assert (report.probes_good, report.probes_bad, report.probing) == (1, 0, False)

    play(scene)


@pytest.mark.parametrize("last", [BreakerView(), OPEN], ids=["closed", "open"])
def test_without_redis_the_last_state_holds(play, last):
    """An exchange that fails changes nothing."""

    async def scene(p: Play) -> None:
        await p.exchange(last)
        before = p.gate.startable
        await p.exchange(RedisUnavailableError("away"))
        assert p.gate.startable == before

    play(scene)


def test_retries_wait_for_their_tokens():
    """Who finds no token is announced; tokens that nobody announced for are void."""
    tokens, calls = RetryTokens(), [Play.call(cast("Any", None), 1) for _ in range(3)]
    assert not tokens.take(calls[0])
    tokens.announce(calls[1])
    assert tokens.wanted == 2
    tokens.granted(5, 0.5)
    assert tokens.wanted == 0
    assert [tokens.take(call) for call in calls] == [True, True, False]
    tokens.withdraw(calls[2])
    assert tokens.wanted == 0
