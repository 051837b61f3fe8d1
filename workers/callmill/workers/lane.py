"""Lane: all calls of one API in one worker process.

Calls wait in the lane's queues. The limiter knows how many they are and starts the next one whenever a slot is due and
the lane has room; the attempts make it. While an API is down or paused for long, its calls go to the lane of its
fallback.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from itertools import groupby, islice

from callmill.breaker import BreakerStore
from callmill.config.profiles import ApiProfile
from callmill.holds import HoldStore
from callmill.jobs.traffic import TrafficClass
from callmill.ledger.fleet import LaneStatus
from callmill.limits import Limiter, Slot
from callmill.limits.cost import Cost
from callmill.workers.attempt import Attempts
from callmill.workers.breaker_gate import BreakerGate
from callmill.workers.call import Call, CallOwner
from callmill.workers.call_cost import CallCosts
from callmill.workers.fair_queue import CallQueue, FairQueue, Kind
from callmill.workers.hold_gate import HoldGate
from callmill.workers.intake import Intake
from callmill.workers.lane_report import lane_report
from callmill.workers.outcomes import outcome_too_late
from callmill.workers.parking import is_parked
from callmill.workers.probe_choice import ProbeChoice
from callmill.workers.request_builder import RequestBuilder
from callmill.workers.tally import Tally
from callmill.workers.transports.answer_room import AnswerRoom, AnswersOfApi
from callmill.workers.transports.port import Transport

log = logging.getLogger(__name__)

_DIVERTED_LATELY_S = 5.0
"""How long after the last call that went to the fallback this lane still counts as wanted."""


class Lane:
    """One API's waiting calls, limiter, breaker, transport and attempts. Belongs to one event loop."""

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
        answers: AnswersOfApi | None = None,
    ) -> None:
        self.api = profile.name
        self._requests = requests
        self._transport = transport
        self._limiter = limiter
        self._costs = costs
        self._max_in_flight = max_in_flight
        self._answers = answers or AnswersOfApi(AnswerRoom())
        self._now = asyncio.get_running_loop().time
        self._queue = FairQueue(limiter.weight_of)
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
            classes=self._queue.waiting_classes,
        )
        self._attempts = Attempts(
            profile, requests, transport, limiter, costs=costs, breaker=self._breaker, holds=self._holds
        )
        self._intake = Intake(limiter, self._queue, max_in_flight=max_in_flight)
        self._gate_open = True
        self._is_free = True  # only limits and room say when calls start, as nearly always
        self._fallback: Lane | None = None
        self._parked = False
        self._serves: Lane = self
        self._diverted_s = self._full_s = float("-inf")
        limiter.serve(self)

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
    def tally(self) -> Tally:
        """What its calls came to."""
        return self._attempts.tally

    @property
    def in_flight(self) -> int:
        """Calls under way."""
        return self._attempts.in_flight

    @property
    def waiting(self) -> int:
        """Calls taken in and not started."""
        return len(self._queue)

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
        waiting = self._queue.of_class(traffic)
        return self._intake.has_room(waiting) if self._up else self._probes.has_room(waiting)

    def share(self, traffic: TrafficClass) -> float:
        """Return the part of this lane that a class gets while the classes that wait here want theirs."""
        return self._queue.share(traffic)

    def add(self, owner: CallOwner, calls: Sequence[Call], *, first: int = 0) -> None:  # noqa: ARG002 - the calls know it
        """Take calls of one owner in, so many of them before the others of their class and the rest behind them."""
        self._enter(calls[:first], first=True)
        self._enter(calls[first:])
        self._woken()

    def add_first(self, call: Call) -> None:
        """Take a call in before the others of its class: it has waited already.

        While the API fails or is down, others go first: they show whether it is down or the call itself is at fault.
        They do so as well where the API refused this call more than once: refusals are to be spread over all.
        """
        waits = call.lets_others_go_first or self._breaker.failing or not self._breaker.closed
        self._enter([call], first=not waits)
        self._woken()

    def will_retry(self, call: Call, *, wanted: bool) -> None:
        """Take note that a call will want another attempt, or does so no more."""
        (self._breaker.retries.announce if wanted else self._breaker.retries.withdraw)(call)

    def retry_wait_s(self, call: Call) -> float:
        """Return 0 where a call may stand in line again; where the retry budget is spent, seconds until it may ask."""
        return self._breaker.retry_wait_s(call)

    def forget(self, owner: CallOwner) -> None:
        """Drop the waiting calls of an owner that gives them back."""
        self._queue.forget(owner)
        if self._fallback is not None:
            self._fallback.forget(owner)

    def drop(self, traffic: TrafficClass) -> None:
        """Forget a class that is not used any more."""
        self._queue.drop(traffic)

    def set_gate(self, *, is_open: bool) -> None:
        """Let calls start, or none."""
        self._gate_open = is_open
        self._look()

    def status(self) -> LaneStatus:
        """Return what the lane does now."""
        return lane_report(
            self.api,
            self._limiter.status(),
            self._breaker,
            in_flight=self.in_flight,
            waiting=self.waiting,
            served_by=self._serves.api,
            most_in_flight=self._max_in_flight,
            held=self._holds.line,
        )

    async def cancel(self) -> None:
        """Cancel every call in flight."""
        await self._attempts.cancel()

    async def aclose(self) -> None:
        """Start nothing any more, cancel what is left and close the connections."""
        self.set_gate(is_open=False)
        await self._breaker.aclose()
        await self._holds.aclose()
        await self.cancel()
        await self._transport.aclose()
        await self._costs.aclose()
        await self._limiter.aclose()

    # What the limiter asks of who makes the calls: see ``callmill.limits.waiting.Caller``.

    def room(self) -> int:
        """How many more calls may start now."""
        room = 0 if self._answers.waiting else self.places()
        if room <= 0:
            self._full_s = self._now()
        return room if self._is_free else int(min(room, self._startable))

    def places(self) -> int:
        """How many more calls may be under way."""
        return self._max_in_flight - self._attempts.in_flight

    def calls(self, traffic: TrafficClass, model: str, weight: int) -> _Waiting:
        """Return the calls of a kind that wait, as the limiter sees them."""
        return _Waiting(self, self._queue.of_kind(traffic, (model, weight)))

    def adopt(self) -> None:
        """Take note that other limits hold: by them the calls that wait may be of other kinds."""
        self._costs.follow()
        self._intake.adopt_rules()
        self._enter([call for queue in self._queue.waiting() for call in queue.take_all()])

    def wanting(self, queue: CallQueue) -> int:
        """Return how many calls of a queue would start if they had slots; of an API that is down, the next probe."""
        if self._is_free:
            return len(queue)
        if self._breaker.closed:
            return len(queue) if self._startable and self._holds.may_try(queue.traffic) else 0
        return min(len(queue), int(self._startable)) if self._startable and self._probes.queue() is queue else 0

    def costs(self, queue: CallQueue, skip: int, count: int) -> list[Cost]:
        """Return what the next calls of a queue after so many take from limits in tokens."""
        return [self._cost(call, queue) for call in islice(queue, skip, skip + count)]

    def start_next(self, queue: CallQueue, slot: Slot) -> bool:
        """Start the next call of a queue; those given back meanwhile are dropped, those too late fail."""
        now_s = self._now()
        while (call := queue.take() if self._breaker.closed else self._probes.take(queue)) is not None:
            if not call.owner.may_start(call, now_s):
                continue
            if call.deadline_s is not None and now_s > call.deadline_s:
                call.owner.refuse(call, outcome_too_late(call))
                continue
            if self._costs.counts_tokens:
                slot.charge(self._cost(call, queue))
            self._attempts.begin(call, slot, self._waited_s(queue, now_s))
            return True
        return False

    def _waited_s(self, queue: CallQueue, now_s: float) -> float:
        """How long limits let the call wait that was taken last: since it came, or there was room for it."""
        return max(0.0, now_s - max(queue.since_s, self._full_s)) if self._intake.paced else 0.0

    @property
    def _startable(self) -> float:
        """Calls that may start now, as far as it is not for the limits to say."""
        if not self._gate_open or (self._serves is not self and self._up):
            return 0
        startable, holds = self._breaker.startable, self._holds
        return min(startable, holds.startable) if holds.watching else startable

    @property
    def _up(self) -> bool:
        return self._breaker.closed and not self._holds.line

    def _enter(self, calls: Sequence[Call], *, first: bool = False) -> None:
        """Let calls wait, before or behind the others of their kinds, and tell the limiter of them."""
        if not calls:
            return
        runs = [(at, list(run)) for at, run in groupby(calls, self._place_of)]
        for (owner, kind), run in reversed(runs) if first else runs:
            self._queue.of_kind(owner.traffic, kind).add(owner, run, first=first)
        if self._serves is not self:
            self._divert(self._serves)
        for traffic, kind in {(owner.traffic, kind) for (owner, kind), _ in runs}:
            self._limiter.wanted(traffic, *kind)

    def _place_of(self, call: Call) -> tuple[CallOwner, Kind]:
        return call.owner, self._costs.kind(call)

    def _cost(self, call: Call, queue: CallQueue) -> Cost:
        cost, (_, weight) = self._costs.estimate(call), queue.kind
        return Cost(cost.tokens, cost.output_tokens, weight)

    def _woken(self) -> None:
        self._breaker.woken()
        self._holds.woken()

    def _has_work(self) -> bool:
        return self.waiting > 0 or self._now() - self._diverted_s < _DIVERTED_LATELY_S

    def _look(self) -> None:
        """Find out who serves the calls now, and go on."""
        self._parked = is_parked(self._limiter)
        if self._fallback is not None:
            before, self._serves = self._serves, self.nearest_up() or self
            if self._serves is not before:
                words = "are its own again" if self._serves is self else f"go to {self._serves.api}"
                log.warning("calls of %s %s", self.api, words, extra={"action": "diverted", "api": self.api})
        self._is_free = self._gate_open and self._breaker.closed and not self._holds.watching and self._serves is self
        if self._serves is not self:
            self._divert(self._serves)
        self._limiter.look()

    def _divert(self, lane: Lane) -> None:
        """Hand waiting calls to another lane, but for those that try whether the API is up."""
        kept = self._startable
        for queue in self._queue.waiting():
            while len(self._queue) > kept and (call := queue.take()) is not None:
                # From its own URL: where this API redirected it is this API's affair, and may hold a secret.
                call.url = call.own_url = self._requests.relative(call.own_url)
                call.redirects, call.refusals, call.refused_keys, call.said = 0, 0, frozenset(), None
                call.unknown_keys = frozenset()
                self._diverted_s = self._now()
                lane.add(call.owner, [call])


class _Waiting:
    """The calls of one kind that wait in a lane, as the limiter sees them."""

    __slots__ = ("_lane", "_queue")

    def __init__(self, lane: Lane, queue: CallQueue) -> None:
        self._lane = lane
        self._queue = queue

    @property
    def wanting(self) -> int:
        """See the port."""
        return self._lane.wanting(self._queue)

    @property
    def any(self) -> bool:
        """See the port."""
        return bool(self._queue)

    def costs(self, skip: int, count: int) -> list[Cost]:
        """See the port."""
        return self._lane.costs(self._queue, skip, count)

    def start(self, slot: Slot) -> bool:
        """See the port."""
        return self._lane.start_next(self._queue, slot)
