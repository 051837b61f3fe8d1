"""Attempt: makes one call, from the request to what becomes of it.

The way of a call: its request is built and sent; the answer, or the fault that came instead, is judged; breaker, holds,
limiter and costs learn from it; the call ends with an outcome, or wants another attempt.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from callmill.config.profiles import ApiProfile
from callmill.config.redaction import without_secrets
from callmill.errors import InternalError
from callmill.jobs.wire import WireOutcome
from callmill.limits import Limiter, Slot
from callmill.limits.feedback import Feedback
from callmill.workers.backoff import full_jitter_s
from callmill.workers.breaker_gate import BreakerGate
from callmill.workers.busy_answers import BusyAnswers
from callmill.workers.call import Call, Postponed
from callmill.workers.call_cost import REFUNDED, CallCosts
from callmill.workers.cost_hooks import Stated
from callmill.workers.header_reader import HeaderReader
from callmill.workers.hold_gate import HoldGate, Ticket
from callmill.workers.kept_headers import KeptHeaders
from callmill.workers.key_refusals import KeyRefusals
from callmill.workers.outcomes import outcome_of_answer, outcome_without_answer
from callmill.workers.own_refusals import OwnRefusals, described, wait_s
from callmill.workers.request_builder import ForbiddenUrlError, RequestBuilder
from callmill.workers.tally import BUG, CUT_OFF, Tally
from callmill.workers.throttle_bounds import ThrottleBounds
from callmill.workers.throttling import Throttled, ThrottleKind
from callmill.workers.transports.port import FaultKind, Response, Transport, TransportFault
from callmill.workers.verdict import (
    AnswerRules,
    Failed,
    KeyRefused,
    Redirected,
    Retryable,
    Succeeded,
    Verdict,
    classify_fault,
    classify_response,
)

log = logging.getLogger(__name__)

_MAX_REDIRECTS = 5
_LEAST_ATTEMPTS_TO_FOLLOW = 2
"""Attempts that stop redirects, at least: a call that was given back between two redirects has spent one already."""

_SHOWN_LENGTH = 300
_SPENT_QUOTA_S = 3600.0
"""When a quota is asked for again of which the API did not say when it is whole."""


_TOO_LATE = Postponed("late", "the worker came too late for its slot or lease", spends_attempt=False, made=False)


class Attempts:
    """The calls of one API that are under way in this process. Belongs to one event loop.

    Attributes:
        in_flight: How many they are.
        tally: What they came to.
    """

    def __init__(
        self,
        profile: ApiProfile,
        requests: RequestBuilder,
        transport: Transport,
        limiter: Limiter,
        *,
        costs: CallCosts,
        breaker: BreakerGate,
        holds: HoldGate,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        now = self._loop.time
        self.in_flight = 0
        self.tally = Tally()
        self._api = profile.name
        self._rules = AnswerRules(profile)
        self._requests = requests
        self._transport = transport
        self._limiter = limiter
        self._costs = costs
        self._breaker = breaker
        self._holds = holds
        self._headers = HeaderReader(self._rules.throttle.statuses, now)
        self._busy = BusyAnswers(now)
        self._endings = Endings(profile, requests, limiter, breaker, holds, now=now)
        limiter.on_taken = self._endings.own_refusals.heard_taken
        limiter.on_refused = self._endings.own_refusals.heard_refused
        self._tasks: dict[Call, asyncio.Task[None]] = {}

    def begin(self, call: Call, slot: Slot, waited_s: float) -> None:
        """Make a call in a slot that is due; ``waited_s``: how long the limiter let it wait."""
        self.in_flight += 1
        call.owner.started(call)
        ticket = self._breaker.started()
        watched = self._holds.started(slot.key) if self._holds.watching else None
        self._tasks[call] = self._loop.create_task(self._make(call, slot, waited_s, ticket, watched))

    async def cancel(self) -> None:
        """Cut every call off."""
        await asyncio.sleep(0)  # a task that is cancelled before it ran tells nobody that its call is over
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _make(self, call: Call, slot: Slot, waited_s: float, ticket: int, watched: Ticket | None) -> None:
        ending: WireOutcome | Postponed = _TOO_LATE
        used: Stated | None = None
        try:
            if self._limiter.accept(slot) and self._may_still_start(call):
                self.tally.started(waited_s)
                ending, used = await self._exchange(call, slot, ticket)
        except asyncio.CancelledError:
            self.tally.broken_off(CUT_OFF)
            call.owner.interrupted(call)
            raise
        except Exception as error:  # the boundary of a job: a bug of ours must not take its neighbours along
            log.exception("a call met a bug", extra={"action": "call_bug", "api": self._api})
            self.tally.broken_off(BUG)
            ending = outcome_without_answer(call, "internal", without_secrets(f"{InternalError.__doc__} ({error!r})"))
        finally:
            self._over(call, slot, used, ticket, watched)
        try:
            self._hand_back(call, ending)
        except Exception:  # nobody awaits this task
            log.critical("a call's end was lost", exc_info=True, extra={"action": "call_lost", "api": self._api})

    def _may_still_start(self, call: Call) -> bool:
        """Ask lease and deadline again: the process may have stood still since the call was chosen."""
        now_s = self._loop.time()
        return (call.deadline_s is None or now_s <= call.deadline_s) and call.owner.may_start(call, now_s)

    def _hand_back(self, call: Call, ending: WireOutcome | Postponed) -> None:
        if isinstance(ending, Postponed):
            self.tally.again(spends_attempt=ending.spends_attempt)
            call.owner.postpone(call, ending)
        else:
            call.owner.record(call, ending)

    def _over(self, call: Call, slot: Slot, used: Stated | None, ticket: int, watched: Ticket | None) -> None:
        """Let others have what the call took."""
        del self._tasks[call]
        self.in_flight -= 1
        if watched is not None:
            self._holds.over(watched, slot.key)
        self._breaker.over(ticket)
        self._limiter.settle(slot, *(used or (None, None)))  # last: the next call may start now

    async def _exchange(self, call: Call, slot: Slot, ticket: int) -> tuple[WireOutcome | Postponed, Stated | None]:
        """Send the request; return how the call goes on, and what it cost."""
        call.started_ms, began_s = int(time.time() * 1000), time.perf_counter()
        answer: Response | None = None
        feedback: Feedback | None = None
        fault: TransportFault | None = None
        sent = True
        try:
            answer = await self._transport.send(*self._requests.build(call, slot.key))
            answer = self._requests.masks[slot.key].answer(answer)
            feedback = self._headers.read(answer)
            verdict = classify_response(call.job.method, answer, feedback, self._rules)
            verdict = self._busy.judged(call, verdict, answer)
        except TransportFault as met:
            verdict, sent, fault = classify_fault(call.job.method, met, self._rules), met.sent, met
        except ForbiddenUrlError as error:
            verdict, sent = Failed(FaultKind.FORBIDDEN_ADDRESS.value, str(error)), False
        call.latency_us = int((time.perf_counter() - began_s) * 1e6)
        is_held = self._holds.concerns(answer) and self._holds.judged(call, slot.key, verdict, answer, fault)
        unknown_host = fault is not None and self._breaker.closed and self._holds.is_first_contact(fault)
        spared = not unknown_host and self._breaker.judged(ticket, call, verdict, answer, sent=sent)
        used = self._costs.used(call, answer) if sent else REFUNDED
        self.tally.tokens += slot.cost.tokens if used is None else used[0]
        if feedback is not None and feedback.observations:
            self._limiter.feed(slot, feedback.observations)
        self.tally.ended(verdict, answer, call.latency_us)
        if is_held and not (isinstance(verdict, Retryable) and verdict.not_repeated):
            return self._holds.put_back(verdict), used
        return self._endings.of(call, slot, verdict, answer, spared=spared), used


class Endings:
    """What becomes of one API's calls; what that teaches of limits and credentials goes to the limiter.

    Attributes:
        own_refusals: Whose matter the API's refusals are.
    """

    def __init__(
        self,
        profile: ApiProfile,
        requests: RequestBuilder,
        limiter: Limiter,
        breaker: BreakerGate,
        holds: HoldGate,
        *,
        now: Callable[[], float],
    ) -> None:
        self._retry_policy = profile.retry
        self._base_url = profile.base_url
        self._kept_headers = KeptHeaders(profile.keep_headers)
        self._requests = requests
        self._limiter = limiter
        self._breaker = breaker
        self._keys = KeyRefusals(profile.name, limiter, holds)
        self._throttles = ThrottleBounds(profile, now)
        self.own_refusals = OwnRefusals(now)
        self._now = now

    def of(
        self, call: Call, slot: Slot, verdict: Verdict, answer: Response | None, *, spared: bool
    ) -> WireOutcome | Postponed:
        """Return a call's outcome, or how it continues; ``spared``: its failure spends no attempt."""
        match verdict:
            case Succeeded():
                self._taken(call, slot)
                self._keys.accepted(call, slot)
                call.attempts += 1
                return self._outcome(call, slot, answer)
            case Throttled():
                ending = self._throttle(call, slot, verdict)
            case Retryable():
                ending = self._retry(call, verdict, spared=spared)
            case Redirected():
                ending = self._follow(call, verdict)
            case KeyRefused():
                ending = self._keys.refused(call, slot, verdict)
            case Failed():
                ending = self._fail(call, slot, verdict, answer)
        if isinstance(ending, Postponed):
            return ending
        call.attempts += 1
        return self._outcome(call, slot, answer, ending)

    def _fail(self, call: Call, slot: Slot, verdict: Failed, answer: Response | None) -> Failed:
        if answer is not None:  # whatever the API thinks of the call, its limits took it
            self._taken(call, slot)
        return verdict

    def _taken(self, call: Call, slot: Slot) -> None:
        if self.own_refusals.rows:
            self.own_refusals.taken(call, self._now() - call.latency_us / 1e6)
        if self._limiter.accepted(slot):
            self._limiter.tell_taken(described(call))

    def _throttle(self, call: Call, slot: Slot, verdict: Throttled) -> Postponed | Failed:
        after_s = verdict.after_s
        own = self.own_refusals.refused(call, self._now() - call.latency_us / 1e6)
        if self.own_refusals.is_news:
            self._limiter.tell_refused(described(call))
        if own is not None:
            self._limiter.refused_alone(slot, forgive_s=own.since_s)
            again = Postponed(verdict.code, verdict.reason, wait_s(call, after_s), spends_attempt=False, throttled=True)
            return self._throttles.refused(call, verdict.reason) or again
        if after_s is None and verdict.kind is ThrottleKind.QUOTA:
            after_s = _SPENT_QUOTA_S
        self._limiter.refused(slot, after_s, verdict.reason, cause=verdict.kind.value, witness=call.key)
        again = Postponed(verdict.code, verdict.reason, spends_attempt=False, throttled=True)
        return self._throttles.refused(call, verdict.reason) or again

    def _retry(self, call: Call, verdict: Retryable, *, spared: bool) -> Postponed | Failed:
        policy = self._retry_policy
        if verdict.not_repeated:
            return Failed(verdict.code, f"{verdict.message}; {verdict.not_repeated}")
        if spared:
            delay_s = max(self._breaker.wait_s(), verdict.after_s)
            return Postponed(verdict.code, verdict.message, delay_s, spends_attempt=False)
        if call.attempts + 1 >= policy.attempts:
            self._breaker.settled(call)
            return Failed(verdict.code, verdict.message)
        call.attempts += 1
        self._breaker.spent(call)
        delay_s = max(full_jitter_s(call.attempts, policy.base, policy.cap), verdict.after_s)
        return Postponed(verdict.code, verdict.message, delay_s)

    def _follow(self, call: Call, verdict: Redirected) -> Postponed | Failed:
        target = self._requests.redirected(call.url, verdict.location)
        shown = _shown(without_secrets(target))  # in this order: of a secret that was cut, nobody knows the rest
        if verdict.not_followed:
            return Failed(verdict.code, f"{verdict.message} to {shown}, not followed: {verdict.not_followed}")
        if not self._requests.covers(target):
            return Failed(
                "redirect",
                f"redirected away from the API, to {shown}; calls and credentials only go to URLs under its base_url, "
                f"{self._base_url}: change it in the profile if the API has moved",
            )
        if call.redirects >= _MAX_REDIRECTS:
            return Failed("redirect", f"more than {_MAX_REDIRECTS} redirects, the last one to {shown}")
        if call.attempts >= max(self._retry_policy.attempts, _LEAST_ATTEMPTS_TO_FOLLOW):
            return Failed("redirect", f"redirected again after its last attempt, to {shown}")
        call.redirects += 1
        call.url = target
        return Postponed("redirect", shown, spends_attempt=False)

    def _outcome(self, call: Call, slot: Slot, answer: Response | None, failed: Failed | None = None) -> WireOutcome:
        code, message = (None, None) if failed is None else (failed.code, failed.message)
        if answer is None:
            return outcome_without_answer(call, code, message)
        headers = self._kept_headers.of(answer, self._requests.masks[slot.key])
        return outcome_of_answer(call, answer, headers, code, message)


def _shown(url: str) -> str:
    """Return a URL for messages: shortened, without credentials, and without the query, which may hold one."""
    scheme, separator, rest = url[:_SHOWN_LENGTH].partition("://")
    if not separator:
        scheme, rest = "", url[:_SHOWN_LENGTH]
    path, query, _ = rest.partition("?")
    host, slash, path = path.partition("/")
    shown = f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}{'?...' if query else ''}"
    return "".join(character if character.isprintable() else "?" for character in shown)
