"""Lane: all calls of one API in one worker process.

Calls wait in a line for each traffic class. Runners, as many as calls may be in flight, take one after the other:
slot, exchange, verdict, ending. A call is bound to its slot late, so what was given back
meanwhile costs nothing.

Who goes first: where limits pace the calls, the limiter decides, and here every class is made to ask. Elsewhere a slot
is for any call, and the classes take turns.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import cast

from callmill.breaker import BreakerStore
from callmill.config.profiles import ApiProfile
from callmill.config.redaction import without_secrets
from callmill.errors import InternalError
from callmill.holds import HoldStore
from callmill.jobs.traffic import TrafficClass
from callmill.jobs.wire import WireOutcome
from callmill.ledger.fleet import LaneStatus
from callmill.limits import Limiter, Slot
from callmill.limits.feedback import Feedback
from callmill.workers.asking import Asking
from callmill.workers.breaker_gate import BreakerGate
from callmill.workers.busy_answers import BusyAnswers
from callmill.workers.call import Call, CallCost, CallOwner, Postponed
from callmill.workers.call_cost import REFUNDED, CallCosts
from callmill.workers.endings import Endings, outcome_too_late, outcome_without_answer
from callmill.workers.fair_queue import ClassLine, FairQueue
from callmill.workers.header_reader import HeaderReader
from callmill.workers.hold_gate import HoldGate
from callmill.workers.intake import Intake
from callmill.workers.lane_report import lane_report
from callmill.workers.pace import Pace
from callmill.workers.parking import is_parked
from callmill.workers.probe_choice import ProbeChoice
from callmill.workers.request_builder import ForbiddenUrlError, RequestBuilder
from callmill.workers.tally import BUG, CUT_OFF, Tally
from callmill.workers.transports.port import FaultKind, Response, Transport, TransportFault
from callmill.workers.verdict import AnswerRules, Failed, Retryable, classify_fault, classify_response

log = logging.getLogger(__name__)

_ASKING_AT_ONCE = 256
"""Runners that wait for a slot at most, but for one of each class: what the limiter sees as demand."""

_RESERVED_AHEAD_S = 0.2
"""Slots that are reserved before a runner asks for them, in seconds of what a class gets or could have."""

_DIVERTED_LATELY_S = 5.0
"""How long after the last call that went to the fallback this lane still counts as wanted."""


class Lane:
    """One API's waiting calls, limiter, breaker, transport and runners. Belongs to one event loop."""

    def __init__(
        self,
        profile: ApiProfile,
        requests: RequestBuilder,
        transport: Transport,
        limiter: Limiter,
        breaker: BreakerStore,
        *,
        costs: CallCosts,
        max_in_flight: int,
        open_holds: Callable[[], Awaitable[Sequence[HoldStore]]],
    ) -> None:
        self.api = profile.name
        self.in_flight = 0
        self.gate_open = True
        self.tally = Tally()
        self._requests = requests
        self._transport = transport
        self._limiter = limiter
        self._costs = costs
        self._max_in_flight = max_in_flight
        self._rules = AnswerRules(profile)
        self._queue = FairQueue(lambda traffic: traffic.priority.weight * profile.tenants.get(traffic.tenant, 1.0))
        self._probes = ProbeChoice(self._queue)
        self._breaker = BreakerGate(
            profile.name,
            breaker,
            self._probes,
            on_news=self._look,
            has_work=self._has_work,
            may_probe=lambda: self._holds.can_start,
        )
        self._holds = HoldGate(
            profile,
            limiter,
            open_holds,
            on_news=self._look,
            has_work=self._has_work,
            in_flight=lambda: self.in_flight,
        )
        self._now = asyncio.get_running_loop().time
        self._endings = Endings(profile, requests, limiter, self._breaker, self._holds, now=self._now)
        self._runners: set[asyncio.Task[None]] = set()
        self._asking = Asking(self._queue)
        self._asking_for_any: set[asyncio.Task[None]] = set()
        self._headers = HeaderReader(self._rules.throttle.statuses)
        self._busy = BusyAnswers(asyncio.get_running_loop().time)
        self._pace = Pace()
        self._intake = Intake(limiter, self._queue, max_in_flight=max_in_flight)
        self._fallback: Lane | None = None
        self._parked = False
        self._serves: Lane = self
        self._diverted_s = float("-inf")
        limiter.expect(self._about_to_ask)

    async def start(self) -> None:
        """Read whether the API is up or held, and keep following both."""
        await self._breaker.start()
        await self._holds.start()

    def fall_back_to(self, lane: Lane) -> None:
        """Send calls through another lane while this one's API is down or paused for long."""
        self._fallback = lane

    def nearest_up(self) -> Lane | None:
        """Return this lane, or the first of its fallbacks, that is neither down nor paused for long."""
        if not self._parked and self._up:
            return self
        return None if self._fallback is None else self._fallback.nearest_up()

    @property
    def waiting(self) -> int:
        """Calls taken in and not started."""
        return len(self._queue) + self._runners_asking

    @property
    def held(self) -> str:
        """Why no call starts until someone acts; empty if calls may start, here or at the fallback."""
        return self._holds.line if self._serves is self else ""

    @property
    def paced(self) -> bool:
        """Whether limits decide when calls start, or none may start because the API is down or held."""
        return self._serves.paced if self._serves is not self else self._intake.paced or not self._up

    def has_room(self, traffic: TrafficClass) -> bool:
        """Say whether to take in more work of a class; while the API is down or held, only what a probe needs."""
        if self._serves is not self:
            return self._serves.has_room(traffic)
        line = self._queue.line(traffic)
        return self._intake.has_room(line) if self._up else self._probes.has_room(line)

    def share(self, traffic: TrafficClass) -> float:
        """Return the part of this lane that a class gets while the classes that wait here want theirs."""
        return self._queue.share(self._queue.line(traffic))

    def add(self, owner: CallOwner, calls: Sequence[Call], *, first: int = 0) -> None:
        """Take calls of one owner in, so many of them before the others of their class and the rest behind them."""
        if first:
            self._queue.add(owner, calls[:first], first=True)
        self._queue.add(owner, calls[first:])
        self._woken()
        self.kick()
        self._make_heard()

    def add_first(self, call: Call) -> None:
        """Take a call in before the others of its class: it has waited already.

        While the API fails or is down, others go first: they show whether it is down or the call itself is at fault.
        They do so as well where the API refused this call more than once: refusals are to be spread over all.
        """
        if call.lets_others_go_first or self._breaker.failing or not self._breaker.closed:
            self._queue.add(call.owner, [call])
        else:
            self._queue.add_first(call)
        self._woken()
        self.kick()

    def will_retry(self, call: Call, *, wanted: bool) -> None:
        """Take note that a call will want another attempt, or does so no more."""
        (self._breaker.retries.announce if wanted else self._breaker.retries.withdraw)(call)

    def retry_wait_s(self, call: Call) -> float:
        """Return 0 where a call may stand in line again; where the retry budget is spent, seconds until it may ask."""
        return self._breaker.retry_wait_s(call)

    def forget(self, owner: CallOwner) -> None:
        """Drop the waiting calls of an owner that gives them back; those that wait for a slot take none."""
        self._queue.forget(owner)
        self._asking.forget(owner)
        if self._fallback is not None:
            self._fallback.forget(owner)

    def drop(self, traffic: TrafficClass) -> None:
        """Forget a class that is not used any more."""
        self._queue.drop(traffic)

    def kick(self) -> None:
        """Start runners for what waits, if there is room."""
        self._intake.adopt_rules()
        if self._serves is not self:
            self._divert(self._serves)
        slot_first, startable = self._intake.slot_first, self._startable
        if not slot_first:
            for runner in self._asking_for_any:  # now calls ask themselves: a slot for nobody would be wasted
                runner.cancel()
        while (
            self._queue
            and len(self._runners) - self.in_flight < startable
            and len(self._runners) < self._max_in_flight
            and len(self._runners) - self.in_flight - self._runners_asking < len(self._queue)
            and (self._runners_asking < _ASKING_AT_ONCE or (not slot_first and self._queue.unheard))
        ):
            runner = asyncio.ensure_future(self._run_slot_first() if slot_first else self._run())
            self._runners.add(runner)
            runner.add_done_callback(self._runner_ended)

    def status(self) -> LaneStatus:
        """Return what the lane does now."""
        return lane_report(
            self.api,
            self._limiter.status(),
            self._breaker,
            in_flight=self.in_flight,
            waiting=self.waiting,
            asking=self._runners_asking,
            served_by=self._serves.api,
            most_in_flight=self._max_in_flight,
            held=self._holds.line,
        )

    async def cancel(self) -> None:
        """Cancel every call in flight."""
        runners = list(self._runners)
        for runner in runners:
            runner.cancel()
        await asyncio.gather(*runners, return_exceptions=True)

    async def aclose(self) -> None:
        """Start nothing any more, cancel what is left and close the connections."""
        self.gate_open = False
        await self._breaker.aclose()
        await self._holds.aclose()
        await self.cancel()
        await self._transport.aclose()
        await self._costs.aclose()
        await self._limiter.aclose()

    @property
    def _startable(self) -> float:
        """Calls that may start now, as far as it is not for the limits to say."""
        if not self.gate_open or (self._serves is not self and self._up):
            return 0
        startable, holds = self._breaker.startable, self._holds
        return min(startable, holds.startable) if holds.watching else startable

    @property
    def _up(self) -> bool:
        return self._breaker.closed and not self._holds.line

    def _woken(self) -> None:
        self._breaker.woken()
        self._holds.woken()

    def _has_work(self) -> bool:
        return self.waiting > 0 or self._now() - self._diverted_s < _DIVERTED_LATELY_S

    def _look(self) -> None:
        """Find out who serves the calls now, and go on."""
        self._parked = is_parked(self._limiter.status())
        if self._fallback is not None:
            before, self._serves = self._serves, self.nearest_up() or self
            if self._serves is not before:
                words = "are its own again" if self._serves is self else f"go to {self._serves.api}"
                log.warning("calls of %s %s", self.api, words, extra={"action": "diverted", "api": self.api})
            if not self._startable:
                self._asking.give_way()
        self.kick()

    def _divert(self, lane: Lane) -> None:
        """Hand waiting calls to another lane, but for those that try whether the API is up."""
        kept = self._startable
        while len(self._queue) > kept and (call := self._queue.take()) is not None:
            # From its own URL: where this API redirected it is this API's affair, and may hold a secret.
            call.url = call.own_url = self._requests.relative(call.own_url)
            call.redirects, call.refusals, call.refused_keys = 0, 0, frozenset()
            self._diverted_s = self._now()
            lane._queue.add(call.owner, [call])
        lane._woken()
        lane.kick()

    def _about_to_ask(self, traffic: TrafficClass, model: str) -> int:
        """Return how many calls of a class, beyond those that wait for a slot, can start here within a moment."""
        line = self._queue.line(traffic)
        if model or not line.calls:  # which of them are for a model is not known without looking at each
            return 0
        now_s, share = self._now(), self._queue.share(line)
        free = int((self._max_in_flight - len(self._runners)) * share)
        # Its own pace alone would keep it slow: it would ask for one slot at a time, each behind a turn of the others.
        pace = max(line.pace.per_s(line.started, now_s), self._pace.per_s(self.tally.calls, now_s) * share)
        return line.plain_ahead(max(free, int(pace * _RESERVED_AHEAD_S)))

    def _make_heard(self) -> None:
        if len(self._runners) >= self._max_in_flight and not self._intake.slot_first:
            self._asking.make_heard()

    @property
    def _runners_asking(self) -> int:
        return len(self._asking) + len(self._asking_for_any)

    def _runner_ended(self, runner: asyncio.Task[None]) -> None:
        self._runners.discard(runner)
        if not runner.cancelled() and (error := runner.exception()) is not None:
            log.critical("a runner died", exc_info=error, extra={"action": "runner_died", "api": self.api})
        self.kick()

    async def _run(self) -> None:
        while not self._intake.slot_first and (
            (call := self._next(self._queue.take_to_ask if self._breaker.closed else self._probes.take)) is not None
        ):
            line, cost = self._queue.line(call.owner.traffic), self._costs.estimate(call)
            slot = self._limiter.try_acquire(
                cost.tokens,
                output_tokens=cost.output_tokens,
                weight=cost.weight,
                model=cost.model,
                traffic=line.traffic,
            )
            asked_s = 0.0
            if slot is None:
                asked_s, slot = time.perf_counter(), await self._slot_for(call.owner, cost, line)
                if slot is None or not self.gate_open:
                    if slot is not None:
                        self._limiter.settle(slot, 0)
                    self._queue.add_first(call)
                    continue
                if not call.owner.may_start(call, self._now()):
                    other = self._next(partial(self._queue.take_from, line))
                    if other is None or self._costs.estimate(other) != cost:
                        self._limiter.settle(slot, 0)
                        if other is None:
                            return
                        self._queue.add_first(other)
                        continue
                    call = other
            await self._attempt(call, slot, asked_s)

    async def _run_slot_first(self) -> None:
        while self._intake.slot_first and self._queue and self._startable:
            asked_s, slot = 0.0, self._limiter.try_acquire()
            if slot is None:
                runner = cast("asyncio.Task[None]", asyncio.current_task())
                self._asking_for_any.add(runner)
                try:
                    asked_s, slot = time.perf_counter(), await self._limiter.acquire()
                finally:
                    self._asking_for_any.discard(runner)
                    self.kick()
            call = self._next(self._queue.take if self._breaker.closed else self._probes.take)
            if call is None:
                self._limiter.settle(slot, 0)
                return
            await self._attempt(call, slot, asked_s)

    async def _slot_for(self, owner: CallOwner, cost: CallCost, line: ClassLine) -> Slot | None:
        try:
            slot = await self._asking.wait(
                owner,
                line,
                self._limiter.acquire(
                    cost.tokens,
                    output_tokens=cost.output_tokens,
                    weight=cost.weight,
                    model=cost.model,
                    traffic=line.traffic,
                ),
            )
            if slot is None or self._startable:
                return slot
            self._limiter.settle(slot, 0)
            return None
        finally:
            self.kick()
            self._make_heard()

    def _next(self, take: Callable[[], Call | None]) -> Call | None:
        """Return the next call that may start; those given back meanwhile are dropped, those too late fail."""
        while self._startable and (call := take()) is not None:
            now_s = self._now()
            if not call.owner.may_start(call, now_s):
                continue
            if call.deadline_s is None or now_s <= call.deadline_s:
                return call
            call.owner.refuse(call, outcome_too_late(call))
        return None

    async def _attempt(self, call: Call, slot: Slot, asked_s: float) -> None:
        call.owner.started(call)
        ticket = self._breaker.started()
        watched = self._holds.started(slot.key) if self._holds.watching else None
        self.in_flight += 1
        self.tally.started(asked_s)
        self._queue.line(call.owner.traffic).started += 1
        try:
            ending = await self._exchange(call, slot, ticket)
        except asyncio.CancelledError:
            self.tally.broken_off(CUT_OFF)
            call.owner.interrupted(call)
            raise
        except Exception as error:  # the boundary of a job: a bug of ours must not take its neighbours along
            log.exception("a call met a bug", extra={"action": "call_bug", "api": self.api})
            self.tally.broken_off(BUG)
            ending = outcome_without_answer(call, "internal", without_secrets(f"{InternalError.__doc__} ({error!r})"))
        finally:
            self.in_flight -= 1
            self._limiter.settle(slot, None)
            self._breaker.over(ticket)
            if watched is not None:
                self._holds.over(watched, slot.key)
        if isinstance(ending, Postponed):
            self.tally.again(spends_attempt=ending.spends_attempt)
            call.owner.postpone(call, ending)
        else:
            call.owner.record(call, ending)

    async def _exchange(self, call: Call, slot: Slot, ticket: int) -> WireOutcome | Postponed:
        started_ms, began_s = int(time.time() * 1000), time.perf_counter()
        answer: Response | None = None
        feedback: Feedback | None = None
        met: TransportFault | None = None
        sent = True
        try:
            answer = await self._transport.send(*self._requests.build(call, slot.key))
            answer = self._requests.masks[slot.key].answer(answer)
            feedback = self._headers.read(answer)
            verdict = classify_response(call.job.method, answer, feedback, self._rules)
            verdict = self._busy.judged(call, verdict, answer)
        except TransportFault as fault:
            verdict, sent, met = classify_fault(call.job.method, fault, self._rules), fault.sent, fault
        except ForbiddenUrlError as error:
            verdict, sent = Failed(FaultKind.FORBIDDEN_ADDRESS.value, str(error)), False
        call.started_ms = started_ms
        call.latency_us = int((time.perf_counter() - began_s) * 1e6)
        held = self._holds.concerns(answer) and self._holds.judged(call, slot.key, verdict, answer, met)
        unknown_host = self._breaker.closed and self._holds.is_first_contact(met)
        spared = not unknown_host and self._breaker.judged(ticket, call, verdict, answer, sent=sent)
        used = self._costs.used(call, answer) if sent else REFUNDED
        self.tally.tokens += slot.tokens if used is None else used[0]
        if feedback is not None and feedback.observations:
            self._limiter.feed(slot, feedback.observations)
        if held and not (isinstance(verdict, Retryable) and verdict.not_repeated):
            ending: Postponed | WireOutcome = self._holds.put_back(verdict)
        else:
            ending = self._endings.of(call, slot, verdict, answer, spared=spared)
        self._limiter.settle(slot, *(used or (None, None)))  # last: what was learned counts this call as in flight
        self.tally.ended(verdict, answer, call.latency_us)
        return ending
