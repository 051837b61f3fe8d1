"""The breaker's gate in one process: what it decides by itself between two exchanges."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from callmill.breaker import BreakerRules, BreakerState, BreakerView, Report
from callmill.errors import RedisUnavailableError
from callmill.jobs.traffic import NORMAL
from callmill.jobs.wire import WireJob
from callmill.workers.breaker_gate import MOST_SPARED, BreakerGate
from callmill.workers.call import Call
from callmill.workers.fair_queue import FairQueue
from callmill.workers.probe_choice import ProbeChoice
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
        choice = ProbeChoice(FairQueue(lambda _traffic: 1.0))
        self.gate = BreakerGate("x", cast("Any", self.store), choice, on_news=lambda: None, has_work=lambda: True)

    def call(self, attempts: int = 0) -> Call:
        """Return a call that has spent so many attempts."""
        call = Call(WireJob("GET", "/"), cast("Any", SimpleNamespace(traffic=NORMAL)), 0, 0, "")
        call.attempts = attempts
        return call

    def make(self, call: Call, verdict: Any, answer: Response | None, *, sent: bool = True) -> bool:
        """Let a call start and end; return whether its failure is spared."""
        ticket = self.gate.started()
        spared = self.gate.judged(ticket, call, verdict, answer, sent=sent)
        self.gate.over(ticket)
        return spared

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
            assert not p.make(p.call(), *DOWN)
        assert p.make(p.call(), *DOWN)
        assert p.gate.startable == 0

    play(scene)


def test_attempts_spent_on_finding_out_are_given_back(play):
    """When it turns out that the API is down, calls that failed lately have their attempts back."""

    async def scene(p: Play) -> None:
        calls = [p.call(1), p.call(3)]
        for call in calls:
            p.gate.spent(call)
        await p.exchange(OPEN)
        assert [(call.attempts, call.spared) for call in calls] == [(0, 1), (2, 1)]

    play(scene)


def test_failures_are_told_by_what_they_speak_of(play):
    """A 503 lengthens the streak, a witness once; a refused connection is proof each time; a 500 is a doubt, once."""

    async def scene(p: Play) -> None:
        refused, call = Retryable("connect", "refused"), p.call()
        for cause in ("http_500", "http_504", "timeout"):
            mine = p.call()
            for _ in range(4):
                answer = None if cause == "timeout" else Response(int(cause[5:]), {}, b"")
                p.make(mine, Retryable(cause, cause), answer)
                mine.attempts += 1
        report = await p.exchange(BreakerView())
        assert (report.doubts, report.bad, report.streak, report.failed, report.calls) == (3, 0, 0, 12, 12)
        for _ in range(4):
            p.make(call, *DOWN)
            call.attempts += 1
        report = await p.exchange(BreakerView())
        assert (report.doubts, report.bad, report.streak, report.witnesses) == (0, 1, 4, 1)
        p.make(p.call(3), refused, None, sent=False)
        report = await p.exchange(BreakerView())
        assert (report.doubts, report.bad, report.streak, report.witnesses) == (0, 1, 1, 2)

    play(scene)


def test_a_call_that_a_caller_repeats_is_no_new_doubt(play):
    """Celery's retries of a plain task are one job, however often it comes."""

    async def scene(p: Play) -> None:
        for attempt in range(100):
            call = p.call()
            call.repeated = attempt > 0
            p.make(call, *OWN_FAULT)
        assert (await p.exchange(BreakerView())).doubts == 1

    play(scene)


def test_an_answer_dispels_what_was_doubted_here(play):
    """What failed before an answered call is no evidence any more."""

    async def scene(p: Play) -> None:
        for _ in range(60):
            p.make(p.call(), *OWN_FAULT)
        p.make(p.call(), SUCCEEDED, Response(200, {}, b""))
        for _ in range(60):
            p.make(p.call(), *OWN_FAULT)
        assert p.gate.closed
        assert (await p.exchange(BreakerView())).doubts == 60

    play(scene)


def test_a_doubt_that_an_answer_dispelled_is_not_taken_off_again(play):
    """Jobs that failed before an answered call and fail for good after it take nothing off the doubts since."""

    async def scene(p: Play) -> None:
        before, since = [[p.call() for _ in range(30)] for _ in range(2)]
        for call in before:
            p.make(call, *OWN_FAULT)
        p.make(p.call(), SUCCEEDED, Response(200, {}, b""))
        for call in since:
            p.make(call, *OWN_FAULT)
        for call in (*before, *since[:10]):
            call.attempts = 4
            p.gate.settled(call)
        report = await p.exchange(BreakerView())
        assert (report.doubts, report.settled) == (30, 10)

    play(scene)


def test_a_probe_that_may_be_at_fault_counts_and_one_that_is_not_does_not(play):
    """While it is open, a 500 spends an attempt of the job that tried; a 503 does so in the end; a refusal never."""

    async def scene(p: Play) -> None:
        half = BreakerView(state=BreakerState.HALF_OPEN, epoch=1, probes=1)
        await p.exchange(OPEN)

        async def probe(call: Call, *failure: Any, sent: bool = True) -> bool:
            await p.exchange(half)
            return p.make(call, *failure, sent=sent)

        assert not await probe(p.call(), *OWN_FAULT)
        assert not await probe(p.call(), Retryable("timeout", "timeout"), None)
        call = p.call()
        assert [await probe(call, *DOWN) for _ in range(MOST_SPARED + 2)] == [True] * MOST_SPARED + [False] * 2
        assert [await probe(call, Retryable("connect", "no"), None, sent=False) for _ in range(3)] == [True] * 3
        report = await p.exchange(OPEN)
        assert (report.probes_bad, report.probes_doubtful) == (1, 0)

    play(scene)


def test_what_was_spared_too_often_is_given_back_no_more(play):
    """A job whose API goes down and comes back again and again spends its attempts in the end."""

    async def scene(p: Play) -> None:
        call = p.call(1)
        call.spared = MOST_SPARED
        p.gate.spent(call)
        await p.exchange(OPEN)
        assert (call.attempts, call.spared) == (1, MOST_SPARED)

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
        assert p.gate.judged(early, p.call(), *DOWN, sent=True)
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
    tokens.granted(5, 5, 0.5)
    assert tokens.wanted == 0
    assert [tokens.take(call) for call in calls] == [True, True, False]
    tokens.withdraw(calls[2])
    assert tokens.wanted == 0


def test_a_retry_announced_during_an_exchange_is_not_short_of_tokens():
    """Where all tokens asked for were granted, a call that came too late to be asked for comes again in a moment."""
    tokens = RetryTokens()
    tokens.granted(0, 0, 60.0)
    for _ in range(100):
        tokens.announce(Play.call(cast("Any", None), 1))
    tokens.granted(0, 0, 0.02)
    assert tokens.wait_s() < 0.2
    tokens.granted(0, 100, 0.02)
    assert tokens.wait_s() > 0.2
