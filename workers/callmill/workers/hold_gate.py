"""HoldGate: whether the host and credentials of one API let calls start in this process.

A host that has never answered and a credential that has never worked get only a few calls at once, fleet-wide, until
one succeeds. After a handful of failures they are held, with cause and remedy, and calls wait. Once both have worked, a
call costs one comparison here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from http import HTTPStatus
from math import inf
from time import monotonic

from callmill.config.api_profile import ApiProfile
from callmill.config.beat import until_beat_s
from callmill.config.cancelling import end_tasks
from callmill.errors import RedisUnavailableError
from callmill.holds import HoldReport, HoldState, HoldStore, HoldView, held_in_words
from callmill.holds.store import CALLS_AT_ONCE
from callmill.jobs.traffic import TrafficClass
from callmill.limits import Limiter
from callmill.workers.call import Call, Postponed
from callmill.workers.hold_texts import fault_texts, refusal_texts
from callmill.workers.subject import STREAK, Subject, add, host_is_wanted, key_is_wanted
from callmill.workers.throttling import Throttled
from callmill.workers.transports.port import FaultKind, Response, TransportFault
from callmill.workers.verdict import Failed, Retryable, Verdict

log = logging.getLogger(__name__)

POOLED_REFUSALS = 3
"""Refusals that hold a pool credential that has never worked: refused with 401 or 403, their jobs
continue with another one."""

_HOST = -1
_EVERY_S = 0.25
_SETTLED_EVERY_S = 1.0
_IDLE_EVERY_S = 4.0
_GAP_S = 0.01
"""Between two exchanges: what happens in between is reported together."""

_MORE_IN_TIME = 4
"""Extra calls that a process may have in flight while first answers take long.

Should they all be refused, a wrong key has cost six calls in each process that may call, and a few that start before
all have heard: fewer than 50.
"""

_MOST_CLASSES = 10_000
"""Classes of refused calls that are told apart."""

_AGAIN_S = 1.0
"""Earliest restart of a call that met a hold."""

_HARD = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.PAYMENT_REQUIRED, HTTPStatus.PROXY_AUTHENTICATION_REQUIRED})
_REFUSALS = _HARD | {HTTPStatus.FORBIDDEN}
_PROOFS = frozenset({HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY})
"""Answers besides 2xx that an API gives only to callers it knows."""

_TOO_MANY_REQUESTS = HTTPStatus.TOO_MANY_REQUESTS.value
_SERVER_ERRORS = 500
_UNREACHABLE = frozenset({FaultKind.DNS, FaultKind.TLS, FaultKind.CONNECT, FaultKind.FORBIDDEN_ADDRESS})


Ticket = tuple[Subject, ...]


class HoldGate:
    """The holds of one API, as this process knows them. Belongs to one event loop.

    Attributes:
        watching: Whether calls must be reported when they start: something they use has not worked yet.
        line: Why the API is held, and what to do about it; empty if it is not.

    Args:
        profile: The API.
        limiter: Knows its credentials.
        open_stores: Returns the stores of the host, then of each credential.
        on_news: Called when calls may start, or no longer may.
        has_work: Says whether a call waits.
        in_flight: Says how many calls are under way.
        classes: Returns the classes of the calls that wait.
    """

    def __init__(
        self,
        profile: ApiProfile,
        limiter: Limiter,
        open_stores: Callable[[], Awaitable[Sequence[HoldStore]]],
        *,
        on_news: Callable[[], None],
        has_work: Callable[[], bool],
        in_flight: Callable[[], int],
        classes: Callable[[], Iterable[TrafficClass]] = tuple,
    ) -> None:
        self.watching = False
        self.line = ""
        self._profile = profile
        self._limiter = limiter
        self._open_stores = open_stores
        self._on_news = on_news
        self._has_work = has_work
        self._in_flight = in_flight
        self._classes = classes
        self._refused_classes: set[TrafficClass] = set()
        self._host: Subject | None = None
        self._keys: list[Subject] = []
        self._pooled = len(limiter.key_names) > 1
        self._rests = False
        self._worked_s = 0.0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def startable(self) -> float:
        """Calls that may start now; the limiter chooses among several credentials."""
        if self._host is None or not self.watching:
            return inf
        return self._host.startable if self._pooled else min(self._host.startable, self._keys[0].startable)

    @property
    def can_start(self) -> bool:
        """Whether a call could start with some credential: where none could, a probe of the breaker would be lost."""
        host = self._host
        if host is None or not self.watching:
            return True
        return host.startable > 0 and any(self._keys[key].startable > 0 for key in self._limiter.usable_keys)

    def may_try(self, traffic: TrafficClass) -> bool:
        """Say whether a call of a class may try what is held: none that was refused while others wait."""
        return not any(key.unlike for key in self._keys) or traffic not in self._refused_classes

    def holds(self, key: int) -> bool:
        """Say whether a credential, from 0, is held in this process."""
        return self._host is not None and self._keys[key].held

    def has_worked(self, key: int) -> bool:
        """Say whether a credential, from 0, has worked; true if unknown."""
        return self._host is None or self._keys[key].proven

    async def start(self) -> None:
        """Read the state from Redis; without Redis, nothing is held until it is back."""
        await self._open()
        self._task = asyncio.ensure_future(self._run())

    async def aclose(self) -> None:
        """Stop. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            await end_tasks([task])

    def woken(self) -> None:
        """Record that work has come in."""
        if self._rests or (self.watching and not self.line and not self.startable):
            self._wake.set()

    def started(self, key: int) -> Ticket:
        """Record that a call starts with a credential, and return its ticket; only while ``watching``."""
        assert self._host is not None  # noqa: S101 - nothing is watched before
        ticket = (self._host, self._keys[key])
        for subject in ticket:
            subject.in_flight += 1
            subject.trials += subject.held
        self._fill(key)
        return ticket

    def over(self, ticket: Ticket, key: int) -> None:
        """Record that a call with a ticket is over, whatever its result."""
        for subject in ticket:
            subject.in_flight -= 1
            if subject.trials and not subject.in_flight:
                subject.trials, subject.report.tried = 0, True
                self._wake.set()
        self._fill(key)

    def concerns(self, answer: Response | None) -> bool:
        """Say whether a call's result must be ``judged``; an ordinary answer shows that everything still works."""
        if self.watching or answer is None or answer.status in _REFUSALS:
            return True
        if _shows_it_works(answer.status):
            self._worked_s = monotonic()
        return False

    def judged(
        self, call: Call, key: int, verdict: Verdict, answer: Response | None, fault: TransportFault | None
    ) -> bool:
        """Record a call's result; return whether it met a hold and must be put back."""
        if self._host is None:
            return False
        if answer is None:
            return fault is not None and self._unanswered(self._host, self._keys[key], fault)
        if not self._host.proven:
            self._proved(self._host)
        status, credential = answer.status, self._keys[key]
        if status in _REFUSALS and not isinstance(verdict, Throttled):
            return self._refused(call, credential, key, status)
        self._taken(credential, status)
        return False

    def is_first_contact(self, fault: TransportFault) -> bool:
        """Say whether to keep a fault from the breaker: a host that never answered is not temporarily down."""
        return self._host is not None and not self._host.proven and _is_unreachable(fault)

    def put_back(self, verdict: Verdict) -> Postponed:
        """Return how a call that met a hold continues; it spends no attempt."""
        code, message = "held", self.line
        if isinstance(verdict, Failed | Retryable):
            code, message = verdict.code, verdict.message
        subjects = [self._host, *self._keys] if self._host is not None else []
        nexts = [subject.view.next_in_s or 0.0 for subject in subjects if subject.held]
        return Postponed(code, message, max(_AGAIN_S, min(nexts, default=0.0)), spends_attempt=False)

    def blame(self, key: int) -> None:
        """Hold a pool credential that has never worked: others were allowed what it was refused."""
        subject = self._keys[key]
        report = subject.report
        report.cause, report.remedy = refusal_texts(self._profile, key, subject.refused or HTTPStatus.FORBIDDEN)
        report.guilty = True
        self._hurry()

    def _taken(self, credential: Subject, status: int) -> None:
        proof = 200 <= status < 300 or status in _PROOFS
        if proof or (credential.proven and _shows_it_works(status)):
            self._worked_s, credential.streak = monotonic(), 0
        if proof and credential.view.state is not HoldState.PROVEN:
            self._proved(credential)
        elif not credential.proven:
            credential.more += 1
            credential.report.plain += status < _SERVER_ERRORS

    def _proved(self, subject: Subject) -> None:
        subject.report.good += 1
        self._wake.set()

    def _unanswered(self, host: Subject, credential: Subject, fault: TransportFault) -> bool:
        if not _is_unreachable(fault):  # the host was reached and refused nothing
            host.more += not host.proven
            credential.more += not credential.proven
            return False
        if host.proven:
            return False
        host.report.cause, host.report.remedy = fault_texts(self._profile, fault.kind, str(fault))
        host.report.hard += 1
        host.refused = 1
        host.unheard += 1
        self._hurry()
        return host.held or fault.kind is FaultKind.FORBIDDEN_ADDRESS  # which fails at once, and is no job's fault

    def _refused(self, call: Call, credential: Subject, key: int, status: int) -> bool:
        hard, report = status in _HARD, credential.report
        first = not call.attempts and key not in call.refused_keys  # each job counts once
        counts = first and not (self._pooled and credential.proven)  # then the other credentials show whose fault it is
        credential.refused = status
        if counts:
            report.cause, report.remedy = refusal_texts(self._profile, key, status)
        self._note_class(call, credential)
        if credential.proven:
            if counts and hard:
                credential.refused_once_more()
            self._watch()
            if credential.streak >= STREAK:
                self._wake.set()
            return False
        report.hard += counts and hard
        report.soft += counts and not hard
        credential.unheard += 1
        self._hurry()
        return credential.held and not self._pooled  # with several, it goes on with another one

    def _note_class(self, call: Call, credential: Subject) -> None:
        if not credential.held and (not credential.streak if credential.proven else not credential.refused):
            self._refused_classes.clear()
        if len(self._refused_classes) < _MOST_CLASSES:
            self._refused_classes.add(call.owner.traffic)

    def _hurry(self) -> None:
        self._watch()
        self._wake.set()

    def _watch(self) -> None:
        host, before = self._host, self.watching
        self.watching = host is not None and not (host.settled and all(key.settled for key in self._keys))
        if self.watching != before:
            self._on_news()

    def _fill(self, key: int) -> None:
        """Of several credentials, stop using one that has its maximum of calls in flight."""
        if self._pooled:
            subject = self._keys[key]
            self._limiter.fill(key, full=subject.startable <= 0)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_GAP_S)
            self._rests = not (self._has_work() or self._in_flight() or self._worked_s)
            try:
                async with asyncio.timeout(self._pause_s()):
                    await self._wake.wait()
            except TimeoutError:
                self._allow_more()
            self._rests = False
            self._wake.clear()
            if self._host is None:
                await self._open()
            else:
                await self._exchange(self._host)

    def _allow_more(self) -> None:
        """Allow more calls while first answers take long."""
        for subject in [self._host, *self._keys] if self._host is not None and self.watching else []:
            if not (subject.startable or subject.refused or subject.more >= _MORE_IN_TIME):
                subject.more += 1

    def _pause_s(self) -> float | None:
        if self._rests:
            held = self._host is None or self._host.held or any(key.held for key in self._keys)
            return until_beat_s(_IDLE_EVERY_S) if held else None
        return _EVERY_S if self.watching else _SETTLED_EVERY_S

    async def _open(self) -> None:
        try:
            host, *keys = map(Subject, await self._open_stores())
        except RedisUnavailableError as error:
            self._unheard(error)
            return
        self._host, self._keys = host, keys
        await self._exchange(host, begins=True)

    async def _exchange(self, host: Subject, *, begins: bool = False) -> None:
        has_work, worked_s, self._worked_s = self._has_work(), self._worked_s, 0.0
        usable = self._limiter.usable_keys
        for key, subject in (*enumerate(self._keys), (_HOST, host)):
            if subject.settled and not begins and (subject is host or self._pooled) and subject.report == HoldReport():
                continue  # it has worked, and there is nothing to report
            if subject is host:
                wants = has_work and host_is_wanted(host, [self._keys[key] for key in usable])
            else:
                wants = has_work and key in usable and key_is_wanted(subject, host)
            report = subject.take_report(wants=wants)
            subject.unlike = subject is not host and has_work and subject.blocked and self._has_unlike()
            report.unlike, report.seen = wants and subject.unlike, bool(self._refused_classes)
            told, subject.unheard = subject.unheard, 0
            if worked_s and subject.proven and not self._pooled and subject.streak < STREAK:
                report.good, report.good_age_s = report.good + 1, monotonic() - worked_s
            try:
                view = await subject.store.exchange(report, begins=begins)
            except RedisUnavailableError as error:
                self._unheard(error)
                subject.unheard += told
                add(subject.report, report)
                self._go_on_alone(host)
                break
            self._adopt(subject, key, view, report)
        self._watch()
        self._set_line(host)
        self._on_news()

    def _has_unlike(self) -> bool:
        """Say whether a call waits of a class that was never refused: it may show that others are at fault."""
        return any(traffic not in self._refused_classes for traffic in self._classes())

    def _go_on_alone(self, host: Subject) -> None:
        for subject in (host, *self._keys):
            if subject.view.state is HoldState.UNPROVEN:
                subject.view = HoldView(grant=CALLS_AT_ONCE)
        for key in range(len(self._keys)):
            self._fill(key)

    def _adopt(self, subject: Subject, key: int, view: HoldView, told: HoldReport) -> None:
        was_held = subject.held
        subject.adopt(view, told)
        if not self._pooled or key == _HOST:
            return
        if subject.held and not was_held:
            name, api = self._limiter.key_names[key], self._profile.name
            log.warning(
                "credential %s is held: %s", name, view.line, extra={"action": "key_held", "api": api, "key": name}
            )
        self._fill(key)

    def _set_line(self, host: Subject) -> None:
        before, self.line = self.line, ""
        if host.held:
            self.line = host.view.line
        elif all(key.held for key in self._keys):
            self.line = "; ".join(dict.fromkeys(key.view.line for key in self._keys))
        api = self._profile.name
        if self.line and not before:
            log.warning(held_in_words(api, self.line), extra={"action": "api_held", "api": api, "reason": self.line})
        elif before and not self.line:
            log.warning("%s is no longer held", api, extra={"action": "api_released", "api": api})

    def _unheard(self, error: RedisUnavailableError) -> None:
        log.debug("holds cannot be read: %s", error, extra={"action": "holds_unheard", "api": self._profile.name})


def _shows_it_works(status: int) -> bool:
    """Say whether an answer that is no refusal shows that a credential which has worked still does.

    What a gateway says before it asks who calls shows nothing.
    """
    return status < _SERVER_ERRORS and status != _TOO_MANY_REQUESTS


def _is_unreachable(fault: TransportFault) -> bool:
    return fault.kind in _UNREACHABLE or (fault.kind is FaultKind.TIMEOUT and not fault.sent)
