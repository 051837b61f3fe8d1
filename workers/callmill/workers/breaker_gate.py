"""BreakerGate: whether one API's calls may start in this process, by the breaker that the fleet shares.

What happens to calls is summed up and told every half second, at once where it may change something. In between, the
answer of the last exchange holds; without Redis it goes on holding.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from time import monotonic

from callmill.breaker import WITNESSES, BreakerState, BreakerStore, BreakerView, Evidence, Report
from callmill.config.beat import until_beat_s
from callmill.config.cancelling import end_tasks
from callmill.errors import RedisUnavailableError
from callmill.workers.call import Call
from callmill.workers.probe_choice import ProbeChoice
from callmill.workers.retry_tokens import RetryTokens
from callmill.workers.transports.port import Response
from callmill.workers.verdict import Retryable, Verdict

log = logging.getLogger(__name__)

EVERY_S = 0.5
_IDLE_EVERY_S = 4.0
_GAP_S = 0.02
"""Between two exchanges: what happens in it is told together."""

_PROBE_UNUSED_S = 5.0
"""A probe that finds no call for so long is left to other processes."""

_SPENT_KEPT = 2000
_SERVICE_STATUSES = frozenset({502, 503, 529})
"""Answers that are the API's fault. Any other failure after a call was sent may be the call's own."""

MOST_SPARED = 20
"""Failures that a job is spared; later ones count, so that a job that an API never serves ends.

Failed connections never spend attempts while the API is down: no job causes them.
"""

_PROBE = -1


class _Cause(Enum):
    """What a failed call points to."""

    CONNECTION = auto()
    """The API cannot be reached: nothing was sent."""
    SERVICE = auto()
    """The API says that it cannot serve now."""
    UNKNOWN = auto()
    """The API, or only this call: a 500, a time-out, a reset."""


class BreakerGate:
    """The breaker of one API as this process knows it. Belongs to one event loop.

    Attributes:
        view: What the last exchange said.
        closed: Whether the API is up, as far as is known here.
        retries: The retries that this process may make.
        failing: Whether the last call failed.

    Args:
        api: The API.
        store: The breaker in Redis.
        choice: Chooses the probes.
        on_news: Called after every exchange, and when calls may start no more.
        has_work: Says whether a call waits that could be a probe.
        may_probe: Says whether it could start here but for the breaker: elsewhere it would keep others from probing.
    """

    def __init__(
        self,
        api: str,
        store: BreakerStore,
        choice: ProbeChoice,
        *,
        on_news: Callable[[], None],
        has_work: Callable[[], bool],
        may_probe: Callable[[], bool] = lambda: True,
    ) -> None:
        self.view = BreakerView()
        self.retries = RetryTokens()
        self.failing = False
        self._choice = choice
        self._api = api
        self._store = store
        self._on_news = on_news
        self._has_work = has_work
        self._may_probe = may_probe
        self._report = Report()
        self.closed, self._rests = True, False
        self._streak_from_s = self._failing_from_s = 0.0
        self._probes = self._probing = self._doubts_row = 0
        self._probes_until_s = self._heard_s = self._view_s = 0.0
        self._spent: deque[tuple[float, Call]] = deque(maxlen=_SPENT_KEPT)
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def startable(self) -> float:
        """Calls that may start now."""
        return float("inf") if self.closed else self._probes

    @property
    def probe_in_s(self) -> float:
        """Seconds until the next probe, as far as is known; 0 when closed."""
        return max(0.0, self.view.probe_in_s - (monotonic() - self._view_s))

    async def start(self) -> None:
        """Learn what holds, and go on exchanging; without Redis, calls may start until it is back."""
        await self._exchange()
        self._task = asyncio.ensure_future(self._run())

    async def aclose(self) -> None:
        """Stop. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            await end_tasks([task])

    def woken(self) -> None:
        """Take note that work has come in: who rested, or heard long ago, hears anew at once."""
        if self._rests or monotonic() - self._heard_s > EVERY_S:
            self._wake.set()

    def started(self) -> int:
        """Take note that a call starts, and return its ticket; only where ``startable``."""
        self._report.calls += 1
        if self.closed:
            return self.view.epoch
        self._probes -= 1
        self._probing += 1
        return _PROBE

    def judged(self, ticket: int, call: Call, verdict: Verdict, answer: Response | None, *, sent: bool) -> bool:
        """Record the result of a started call; say whether its failure spends no attempt."""
        if not isinstance(verdict, Retryable):
            if sent:
                self._answered(ticket)
            return False
        self._report.failed += 1
        if answer is not None and answer.status < 500:
            self._answered(ticket)
            return False
        cause = _cause(answer, sent=sent)
        if ticket == _PROBE:
            self._probe_failed(call, verdict, cause)
        elif ticket == self.view.epoch:
            self._failed(call, verdict, cause)
        return self._spares(ticket, call, cause)

    def settled(self, call: Call) -> None:
        """Record that a call failed for good. One that failed repeatedly raises no doubts about the API."""
        if call.doubted_in == self._doubts_row:  # an older doubt has been cleared by an answer since
            self._report.settled += 1

    def over(self, ticket: int) -> None:
        """Take note that a call that started is over, whatever became of it."""
        if ticket == _PROBE:
            self._probing -= 1
            self._wake.set()

    def spent(self, call: Call) -> None:
        """Take note that an attempt was spent; it is given back should it turn out that the API is down."""
        if not self.closed:
            return
        now_s = monotonic()
        since_s = self._given_back_since_s(now_s)
        while self._spent and self._spent[0][0] < since_s:
            self._spent.popleft()
        self._spent.append((now_s, call))

    def wait_s(self) -> float:
        """Return seconds until a spared call should come again."""
        first_s = self._store.rules.probe_s
        return max(self.probe_in_s, first_s / 2) + random.uniform(0, 0.1 * first_s)  # noqa: S311 - spread, not secrecy

    def retry_wait_s(self, call: Call) -> float:
        """Return 0 where a call may go on now; seconds after which to ask again where it lacks a token."""
        if not call.attempts:
            self.retries.withdraw(call)
            return 0.0
        if self.retries.take(call):
            return 0.0
        self._wake.set()
        return self.retries.wait_s()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_GAP_S)
            self._rests = not self._has_work() and not self._probing and not self._report.calls
            with suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s()):
                    await self._wake.wait()
            self._wake.clear()
            await self._exchange()

    def _pause_s(self) -> float:
        if self._rests:
            return until_beat_s(_IDLE_EVERY_S)
        return EVERY_S if self.closed else min(EVERY_S, max(self.probe_in_s, _GAP_S))

    async def _exchange(self) -> None:
        could_probe = self._has_work() and self._may_probe()
        if self._probes and (monotonic() > self._probes_until_s or not could_probe):
            self._probes = 0
        report, self._report = self._report, Report()
        report.streak_s = monotonic() - self._streak_from_s if report.streak else 0.0
        report.probing = bool(self._probes or self._probing)
        report.would_probe = could_probe
        report.probe_is_new = not self.closed and self._choice.has_new()
        report.retries_wanted = self.retries.wanted
        try:
            view = await self._store.exchange(report, self.view.epoch)
        except RedisUnavailableError as error:
            log.debug("breaker not heard of: %s", error, extra={"action": "breaker_unheard", "api": self._api})
            self._set_closed(self.view.state is BreakerState.CLOSED)
            return
        self.retries.granted(view.retries, report.retries_wanted, monotonic() - self._heard_s)
        self._adopt(view)

    def _adopt(self, view: BreakerView) -> None:
        now_s, former = monotonic(), self.view
        self.view, self._view_s, self._heard_s = view, now_s, now_s
        if view.epoch != former.epoch:
            self._forget_evidence()
        if view.probes and not self._probes and not self._probing:
            self._probes, self._probes_until_s = view.probes, now_s + _PROBE_UNUSED_S
        if view.state is BreakerState.CLOSED:
            self._probes = 0
        if view.state is not former.state:
            self._tell(view, former)
        self._set_closed(view.state is BreakerState.CLOSED)
        self._on_news()

    def _set_closed(self, closed: bool) -> None:  # noqa: FBT001 - a setter
        if closed == self.closed:
            return
        self.closed = closed
        if closed:
            self.failing = False
            self._choice.api_is_up()
        else:
            self._give_back()
        self._on_news()

    def _give_back(self) -> None:
        """Give back the attempts that were spent on finding out that the API is down."""
        since_s = self._given_back_since_s(monotonic())
        for spent_s, call in self._spent:
            if spent_s >= since_s and call.attempts and call.spared < MOST_SPARED:
                call.attempts -= 1
                call.spared += 1
                self.retries.withdraw(call)
        self._spent.clear()

    def _given_back_since_s(self, now_s: float) -> float:
        since_s = now_s - self._store.rules.window_s
        return min(since_s, self._failing_from_s) if self.failing else since_s

    def _forget_evidence(self) -> None:
        self._doubts_row += 1
        report = self._report
        report.ok = report.bad = report.streak = report.witnesses = report.doubts = report.settled = 0

    def _answered(self, ticket: int) -> None:
        if ticket == _PROBE:
            self._report.probes_good += 1
        elif ticket == self.view.epoch:
            if self.failing:
                self.failing = False
                self._choice.forget()
            report = self._report
            self._doubts_row += 1
            report.ok += 1
            report.streak = report.witnesses = report.doubts = report.settled = 0

    def _failed(self, call: Call, failure: Retryable, cause: _Cause) -> None:
        now_s, report, epoch = monotonic(), self._report, self.view.epoch
        if not self.failing:
            self.failing, self._failing_from_s = True, now_s
        first = not call.attempts and not call.repeated and call.counted_in != epoch
        if first:
            call.counted_in = epoch
            self._choice.met(call)
        if cause is _Cause.UNKNOWN:
            if not first:
                return
            report.doubts += 1
            call.doubted_in = self._doubts_row
        else:
            if not report.streak:
                self._streak_from_s = now_s
            report.streak += 1
            report.bad += first or cause is _Cause.CONNECTION
            report.witnesses += WITNESSES if cause is _Cause.CONNECTION else first
        report.why = _said(failure)
        if self._store.rules.opens(self._evidence(now_s)):
            self._set_closed(False)  # for now: the exchange that follows at once decides
            self._wake.set()

    def _evidence(self, now_s: float) -> Evidence:
        """Return what the fleet knew at the last exchange and what happened here since."""
        view, report = self.view, self._report
        streak, witnesses, doubts = report.streak, report.witnesses, report.doubts
        streak_s = now_s - self._streak_from_s if streak else 0.0
        if not report.ok:
            streak, witnesses, doubts = streak + view.streak, witnesses + view.witnesses, doubts + view.doubts
            if view.streak:
                streak_s = view.streak_s + now_s - self._view_s
        return Evidence(
            ok=view.ok + report.ok,
            bad=view.bad + report.bad,
            streak=streak,
            streak_s=streak_s,
            witnesses=witnesses,
            doubts=doubts - report.settled,
        )

    def _probe_failed(self, call: Call, failure: Retryable, cause: _Cause) -> None:
        self._choice.failed(call)
        if cause is _Cause.UNKNOWN:
            self._report.probes_doubtful += 1
        else:
            self._report.probes_bad += 1
        self._report.why = failure.message

    def _spares(self, ticket: int, call: Call, cause: _Cause) -> bool:
        """Say whether a failure is not the call's fault, as the API is down. A probe's may be, and then counts."""
        if self.closed and ticket == self.view.epoch:
            return False
        if cause is _Cause.CONNECTION:
            return True
        if call.spared >= MOST_SPARED or (ticket == _PROBE and cause is _Cause.UNKNOWN):
            return False
        call.spared += 1
        return True

    def _tell(self, view: BreakerView, former: BreakerView) -> None:
        if former.state is BreakerState.CLOSED:
            log.warning(
                "%s is down: %s; trying again in %.1f s",
                *(self._api, view.reason, view.probe_in_s),
                extra={"action": "breaker_opened", "api": self._api, "reason": view.reason},
            )
        elif view.state is BreakerState.OPEN:
            log.info(
                "%s is still down: %s", self._api, view.reason, extra={"action": "breaker_still_open", "api": self._api}
            )
        elif view.state is BreakerState.CLOSED:
            log.warning("%s is up again", self._api, extra={"action": "breaker_closed", "api": self._api})


def _cause(answer: Response | None, *, sent: bool) -> _Cause:
    if not sent:
        return _Cause.CONNECTION
    return _Cause.SERVICE if answer is not None and answer.status in _SERVICE_STATUSES else _Cause.UNKNOWN


def _said(failure: Retryable) -> str:
    return failure.message if failure.code in failure.message else f"{failure.code}: {failure.message}"
