"""Lane: all calls of one API in one worker process.

Calls wait in one line. Runners, as many as calls may be in flight, take one after the other: slot, exchange, verdict,
and one small function per verdict. A call is bound to its slot late, so what was given back meanwhile costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable
from urllib.parse import urljoin

from callmill.config.limit_spec import Unit
from callmill.config.profiles import ApiProfile
from callmill.errors import InternalError
from callmill.jobs.wire import WireOutcome
from callmill.ledger.fleet import LaneStatus
from callmill.limits import Limiter, Slot
from callmill.workers.backoff import full_jitter_s
from callmill.workers.call import Call, CallOwner, Postponed
from callmill.workers.pace import Pace
from callmill.workers.request_builder import ForbiddenUrlError, RequestBuilder
from callmill.workers.transports.port import FaultKind, Response, Transport, TransportFault
from callmill.workers.verdict import (
    Failed,
    Redirected,
    Retryable,
    Succeeded,
    Throttled,
    Verdict,
    classify_fault,
    classify_response,
)

log = logging.getLogger(__name__)

_ASKING_AT_ONCE = 256
"""Runners that wait for a slot at most: what the limiter sees as demand."""

_MAX_REDIRECTS = 5
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
_RESERVED_AHEAD_S = 0.2
"""Slots that are reserved before a runner asks for them, in seconds of the lane's pace."""

_AHEAD_S = 2.0
"""Work that a paced lane takes in ahead, in seconds of its rate: longer than a queue takes to be consumed again."""


class Lane:
    """One API's waiting calls, limiter, transport and runners. Belongs to one event loop."""

    def __init__(
        self,
        profile: ApiProfile,
        requests: RequestBuilder,
        transport: Transport,
        limiter: Limiter,
        *,
        max_in_flight: int,
    ) -> None:
        self.api = profile.name
        self.in_flight = 0
        self.calls = 0
        self.gate_open = True
        self._profile = profile
        self._requests = requests
        self._transport = transport
        self._limiter = limiter
        self._keep_headers = tuple(profile.keep_headers)
        self._max_in_flight = max_in_flight
        self._retried_statuses = frozenset(profile.retry.statuses)
        self._rates = [spec.amount / spec.window_s for spec in profile.limit_specs if spec.unit is Unit.REQUESTS]
        self._waiting: deque[Call] = deque()
        self._runners: set[asyncio.Task[None]] = set()
        self._pauses: set[asyncio.Task[None]] = set()
        self._asking = 0
        self._throttled_in_a_row = 0
        self._now = asyncio.get_running_loop().time
        self._pace = Pace()
        limiter.expect(self._about_to_ask)

    @property
    def waiting(self) -> int:
        """Calls taken in and not started."""
        return len(self._waiting) + self._asking

    @property
    def paced(self) -> bool:
        """Whether limits decide when calls start."""
        return bool(self._profile.limit_specs)

    @property
    def has_room(self) -> bool:
        """Whether more work should be taken in: some seconds of what is granted, or as much as fits in flight."""
        if not self.paced:
            return self.waiting < self._max_in_flight
        rate = self._limiter.status().rate or min(self._rates, default=0.0)
        return self.waiting < max(1.0, _AHEAD_S * rate)

    def add(self, calls: Iterable[Call]) -> None:
        """Take calls in."""
        self._waiting.extend(calls)
        self.kick()

    def add_first(self, call: Call) -> None:
        """Take a call in before all others: it has waited already."""
        self._waiting.appendleft(call)
        self.kick()

    def forget(self, owner: CallOwner) -> None:
        """Drop the waiting calls of an owner that gives them back."""
        self._waiting = deque(call for call in self._waiting if call.owner is not owner)

    def kick(self) -> None:
        """Start runners for what waits, if there is room."""
        while (
            self._waiting
            and self.gate_open
            and self._asking < _ASKING_AT_ONCE
            and len(self._runners) < self._max_in_flight
            and len(self._runners) - self.in_flight - self._asking < len(self._waiting)
        ):
            runner = asyncio.ensure_future(self._run())
            self._runners.add(runner)
            runner.add_done_callback(self._runner_ended)

    def status(self) -> LaneStatus:
        """Return what the lane does now."""
        limiter = self._limiter.status()
        return LaneStatus(
            api=self.api,
            in_flight=self.in_flight,
            waiting=self.waiting,
            next_start_s=limiter.next_start_in_s,
            paused_s=limiter.paused_for_s,
            pause_reason=limiter.pause_reason,
            limited_by=limiter.limited_by if self._asking else None,
            granted=limiter.granted,
            slots_missed=limiter.slots_missed,
            round_trips=limiter.round_trips,
            guard_s=limiter.guard_s,
        )

    async def cancel(self) -> None:
        """Cancel every call in flight."""
        runners = list(self._runners)
        for runner in runners:
            runner.cancel()
        await asyncio.gather(*runners, return_exceptions=True)

    async def aclose(self) -> None:
        """Cancel what is left and close the connections."""
        await self.cancel()
        await self._transport.aclose()
        await self._limiter.aclose()

    def _about_to_ask(self) -> int:
        """Return how many calls beyond those that wait for a slot this process can start within a moment."""
        free = self._max_in_flight - len(self._runners)
        return min(len(self._waiting), max(free, int(self._pace.per_s(self.calls, self._now()) * _RESERVED_AHEAD_S)))

    def _runner_ended(self, runner: asyncio.Task[None]) -> None:
        self._runners.discard(runner)
        if not runner.cancelled() and (error := runner.exception()) is not None:
            log.critical("a runner died", exc_info=error, extra={"action": "runner_died", "api": self.api})
        self.kick()

    async def _run(self) -> None:
        while (call := self._next()) is not None:
            slot = self._limiter.try_acquire(call.job.tokens or 0)
            if slot is None:
                slot = await self._slot_for(call)
                if not call.owner.may_start(self._now()):
                    other = self._next()
                    if other is None:
                        self._limiter.settle(slot, 0)
                        return
                    call = other
            await self._attempt(call, slot)

    async def _slot_for(self, call: Call) -> Slot:
        self._asking += 1
        try:
            return await self._limiter.acquire(call.job.tokens or 0)
        finally:
            self._asking -= 1
            self.kick()

    def _next(self) -> Call | None:
        """Return the next call that may start; those given back meanwhile are dropped, those too late fail."""
        while self._waiting and self.gate_open:
            call = self._waiting.popleft()
            now_s = self._now()
            if not call.owner.may_start(now_s):
                continue
            if call.deadline_s is None or now_s <= call.deadline_s:
                return call
            call.owner.refuse(call, _outcome(call, "deadline", "its deadline passed before it could start"))
        return None

    async def _attempt(self, call: Call, slot: Slot) -> None:
        call.owner.started()
        self.in_flight += 1
        self.calls += 1
        try:
            ending = await self._exchange(call, slot)
        except asyncio.CancelledError:
            call.owner.interrupted(call)
            raise
        except Exception as error:  # the boundary of a job: a bug of ours must not take its neighbours along
            log.exception("a call met a bug", extra={"action": "call_bug", "api": self.api})
            ending = _outcome(call, "internal", f"{InternalError.__doc__} ({error!r})")
        finally:
            self.in_flight -= 1
        if isinstance(ending, Postponed):
            call.owner.postpone(call, ending)
        else:
            call.owner.record(call, ending)

    async def _exchange(self, call: Call, slot: Slot) -> WireOutcome | Postponed:
        started_ms, began_s = int(time.time() * 1000), time.perf_counter()
        answer: Response | None = None
        try:
            answer = await self._transport.send(*self._requests.build(call))
            verdict = classify_response(call.job.method, answer, self._retried_statuses)
        except TransportFault as fault:
            verdict = classify_fault(fault)
        except ForbiddenUrlError as error:
            verdict = Failed(FaultKind.FORBIDDEN_ADDRESS.value, str(error))
        call.started_ms = started_ms
        call.latency_us = int((time.perf_counter() - began_s) * 1e6)
        self._limiter.settle(slot, None if answer is None else self._requests.tokens_used(answer.body))
        return self._ending(call, verdict, answer)

    def _ending(self, call: Call, verdict: Verdict, answer: Response | None) -> WireOutcome | Postponed:
        match verdict:
            case Succeeded():
                self._throttled_in_a_row = 0
                call.attempts += 1
                return self._outcome(call, answer)
            case Throttled():
                return self._throttle(verdict)
            case Retryable():
                return self._retry(call, verdict, answer)
            case Redirected():
                return self._follow(call, verdict, answer)
            case Failed():
                return self._fail(call, verdict, answer)

    def _throttle(self, verdict: Throttled) -> Postponed:
        after_s = verdict.after_s
        if after_s is None:
            after_s = min(_FIRST_PAUSE_S * 2.0 ** min(self._throttled_in_a_row, 10), _LONGEST_PAUSE_S)
        self._throttled_in_a_row += 1
        self._limiter.hold(after_s, "the API answered 429")  # now: this runner takes its next call before any task runs
        pause = asyncio.ensure_future(self._limiter.pause(after_s, "the API answered 429"))
        self._pauses.add(pause)
        pause.add_done_callback(self._pauses.discard)
        return Postponed("http_429", "429 Too Many Requests", spends_attempt=False, throttled=True)

    def _retry(self, call: Call, verdict: Retryable, answer: Response | None) -> WireOutcome | Postponed:
        policy = self._profile.retry
        if call.attempts + 1 >= policy.attempts:
            return self._fail(call, Failed(verdict.code, verdict.message), answer)
        call.attempts += 1
        delay_s = max(full_jitter_s(call.attempts, policy.base, policy.cap), verdict.after_s)
        return Postponed(verdict.code, verdict.message, delay_s)

    def _follow(self, call: Call, verdict: Redirected, answer: Response | None) -> WireOutcome | Postponed:
        target = urljoin(self._requests.absolute(call.url), verdict.location)
        if not self._requests.covers(target):
            return self._fail(call, Failed("redirect", f"redirected away from the API, to {target}"), answer)
        if call.redirects >= _MAX_REDIRECTS:
            return self._fail(call, Failed("redirect", f"more than {_MAX_REDIRECTS} redirects"), answer)
        call.redirects += 1
        call.url = target
        return Postponed("redirect", target, spends_attempt=False)

    def _fail(self, call: Call, verdict: Failed, answer: Response | None) -> WireOutcome:
        call.attempts += 1
        return self._outcome(call, answer, verdict)

    def _outcome(self, call: Call, answer: Response | None, failed: Failed | None = None) -> WireOutcome:
        code, message = (None, None) if failed is None else (failed.code, failed.message)
        if answer is None:
            return _outcome(call, code, message)
        find = answer.headers.get
        return WireOutcome(
            call.index,
            call.job.id,
            answer.status,
            answer.body,
            {name: value for name in self._keep_headers if (value := find(name)) is not None},
            code,
            message,
            call.attempts,
            call.started_ms,
            call.latency_us,
        )


def _outcome(call: Call, code: str | None, message: str | None) -> WireOutcome:
    """Return the outcome of a call that got no answer."""
    return WireOutcome(
        call.index, call.job.id, None, b"", {}, code, message, call.attempts, call.started_ms, call.latency_us
    )
