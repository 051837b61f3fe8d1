"""The limiter of one API in one process: the face of everything else here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from time import monotonic

from msgspec.structs import replace
from redis.asyncio import Redis

from callmill.config.cancelling import end_tasks
from callmill.config.forks import in_child
from callmill.errors import RedisUnavailableError, UsageError
from callmill.jobs.traffic import NORMAL, TrafficClass
from callmill.limits.channel import Channel
from callmill.limits.clock import RedisClock
from callmill.limits.control import InForce
from callmill.limits.cost import ONE_REQUEST, Cost
from callmill.limits.drift import facts
from callmill.limits.feedback import Observation
from callmill.limits.group import Group
from callmill.limits.key_ring import KeyRing
from callmill.limits.layout import layout, learned_nodes
from callmill.limits.learning import Cause, Learning
from callmill.limits.overrides import Overrides
from callmill.limits.pauses import WHOLE_API, Pauses
from callmill.limits.permit_leases import PermitLeases
from callmill.limits.refill import Refill
from callmill.limits.rules import LimitRules, fixed_guard_s, shortest_window_s, validity_s
from callmill.limits.slots import Dispatcher, Slot
from callmill.limits.status import KeyStatus, LimiterStatus
from callmill.limits.store import LimitStore
from callmill.limits.timing import Timing

START_WAIT_S = 2.0
MOST_IDLE_GROUPS = 64

_NOT_STARTED = "the limiter is not running: await start() first, and acquire nothing after aclose()"


class Limiter:
    """Gives calls their start times so that all processes together keep the limits of one API.

    Made, used and closed on one event loop. While Redis cannot be reached, held slots are fired, then calls wait; they
    go on by themselves when it is back.
    """

    def __init__(self, redis: Redis, name: str, rules: LimitRules, *, worker: str) -> None:
        self._configured = self._rules = rules
        self._timing = Timing(validity_s(rules), fixed_guard_s(rules), window_s=shortest_window_s(rules))
        self._clock = RedisClock()
        self._store = LimitStore(redis, name, worker)
        self._ring = KeyRing([key.name for key in rules.keys])
        self._groups: dict[tuple[str, TrafficClass], Group] = {}
        self._pauses = Pauses(self._store, self._ring, self._groups.values)
        self._leases = PermitLeases(self._store, rules, waiting=self._waiting, on_change=self._permits_changed)
        self._learning = Learning(self._store, self._pauses, self._leases, lambda: self._rules, len(self._ring))
        self._backlog: Callable[[TrafficClass, str], int] | None = None
        self._channel = Channel(redis, self._store.keys.channel, on_message=self._on_message, on_subscribed=self._sync)
        self._overrides = Overrides(redis, name, on_change=self._override, on_news=self._sync, waiting=self._waiting)
        self._tasks: list[asyncio.Task[None]] = []
        self._stopped = _NOT_STARTED
        self._inherited: list[Group] = []
        in_child(self, Limiter._left_behind)
        self._default = self._add_group("", NORMAL)

    @property
    def rules(self) -> LimitRules:
        """What holds now, changes at run time included."""
        return self._rules

    def expect(self, backlog: Callable[[TrafficClass, str], int]) -> None:
        """Reserve ahead for calls that will ask soon.

        ``backlog`` says how many of a class and model, beyond those that wait already. It pays at high rates, where
        waiting for an exchange with Redis would bound the rate. Where tokens are counted it changes nothing: what the
        calls will cost is not known yet.
        """
        self._backlog = backlog
        for group in self._groups.values():
            self._expect_in(group)

    async def start(self) -> None:
        """Publish the rules and listen for pauses; without Redis, go on trying in the background."""
        await self._overrides.load()
        await self._default.refill.exchange()
        self._tasks = [asyncio.create_task(self._channel.run()), asyncio.create_task(self._overrides.run())]
        self._stopped = ""
        self._leases.start()
        for group in self._groups.values():
            group.start()
        with suppress(TimeoutError):
            async with asyncio.timeout(START_WAIT_S):
                await self._channel.subscribed.wait()

    async def aclose(self) -> None:
        """Stop; what waits is cancelled, what is settled reaches Redis if it can. Idempotent."""
        self._stopped = self._stopped or _NOT_STARTED
        tasks, self._tasks = self._tasks, []
        await end_tasks(tasks)
        await self._learning.aclose()
        await asyncio.gather(*(group.aclose() for group in self._groups.values()))
        await self._leases.aclose()

    def try_acquire(
        self,
        tokens: int = 0,
        *,
        output_tokens: int = 0,
        weight: int = 1,
        model: str = "",
        traffic: TrafficClass = NORMAL,
    ) -> Slot | None:
        """The slot that is due now, or None; never waits, never overtakes a call of its class that does."""
        self._overrides.used()
        return self._group(model, traffic).dispatcher.take(_cost(tokens, output_tokens, weight))

    async def acquire(
        self,
        tokens: int = 0,
        *,
        output_tokens: int = 0,
        weight: int = 1,
        model: str = "",
        traffic: TrafficClass = NORMAL,
    ) -> Slot:
        """Wait for the start time of a call, first come first served in its class in this process, and return its slot.

        A cancelled waiter loses nothing for the others.

        Args:
            tokens: What the call is reserved to cost, its answer included.
            output_tokens: The part of it that is the answer's.
            weight: How many requests it counts as.
            model: The model that it names, where the API limits models.
            traffic: Its class.

        Raises:
            UsageError: The limiter is not started, or closed.
            asyncio.CancelledError: The caller gave up, or the limiter was closed.
        """
        self._overrides.used()
        group, cost = self._group(model, traffic), _cost(tokens, output_tokens, weight)
        slot = group.dispatcher.take(cost)
        if slot is not None:
            return slot
        if self._stopped:
            raise UsageError(self._stopped)
        first = False
        while True:
            future = group.dispatcher.enqueue(cost, first=first)
            group.refill.demand()
            self._leases.demand()
            try:
                slot = await future
            except asyncio.CancelledError:
                group.dispatcher.forget(future)
                raise
            if group.dispatcher.accept(slot):
                return slot
            first = True

    @asynccontextmanager
    async def slot(
        self,
        tokens: int = 0,
        *,
        output_tokens: int = 0,
        weight: int = 1,
        model: str = "",
        traffic: TrafficClass = NORMAL,
    ) -> AsyncIterator[Slot]:
        """Make one call inside: wait for its slot, and settle it as reserved at the end unless that was done."""
        slot = await self.acquire(tokens, output_tokens=output_tokens, weight=weight, model=model, traffic=traffic)
        try:
            yield slot
        finally:
            self.settle(slot, None)

    def settle(self, slot: Slot, tokens_used: int | None, output_tokens_used: int | None = None) -> None:
        """The call is over: charge what it really cost, where known, and free its permit; repeats are ignored."""
        if not slot.open or slot.line is None:
            return
        slot.open = False
        if not slot.refused:
            self._leases.answered(slot)
        slot.give_permits()
        if tokens_used is not None:
            output = slot.cost.output_tokens if output_tokens_used is None else output_tokens_used
            slot.line.accounts.settle(slot, Cost(tokens_used, min(output, tokens_used), slot.cost.weight))
        if self._leases.limited:
            self._permits_changed()

    async def pause(self, seconds: float, reason: str, scope: str = WHOLE_API) -> None:
        """Let no call start for ``seconds``, here at once and in the fleet within milliseconds.

        A pause that already lasts longer stays. Without Redis the pause holds here and is told when Redis is back.
        ``scope``: the whole API, or ``model:NAME``, or ``key:NAME``.
        """
        if seconds > 0:
            self.hold(seconds, reason, scope)
            try:
                await self._pauses.tell()
            except RedisUnavailableError:
                self._sync()

    def hold(self, seconds: float, reason: str, scope: str = WHOLE_API) -> None:
        """Let no call start here for ``seconds``, from this moment on; the part of ``pause`` that waits for nobody."""
        self._pauses.hold(seconds, reason, scope)

    def refused(self, slot: Slot, after_s: float | None, reason: str, *, cause: Cause = "") -> None:
        """The API refused a call because of its limits: pause the fleet, and learn from it. Settle the slot after this.

        Args:
            slot: The call's.
            after_s: When the API wants to be asked again; None where it does not say.
            reason: What people are told.
            cause: What there was too much of; empty where it does not say.
        """
        if (group := self._group_of(slot)) is not None:
            self._learning.refused(group, slot, after_s, reason, cause=cause)

    def feed(self, slot: Slot, observations: Sequence[Observation]) -> None:
        """Take what the headers of a call's answer say of the limits."""
        if (group := self._group_of(slot)) is not None:
            limits = group.layout
            if self._rules.learns_pace and not self._rules.learned_pace:
                limits = replace(limits, nodes=(*limits.nodes, *learned_nodes(self._rules, self._store.keys)))
            self._learning.take(
                facts(
                    limits,
                    slot.key + 1,
                    observations,
                    enforcer=self._rules.enforcer,
                    took_s=monotonic() - slot.start,
                    in_flight=self._leases.in_flight,
                )
            )

    def accepted(self, slot: Slot) -> None:
        """The API took a call: refusals of earlier ones are over."""
        self._learning.accepted(slot)

    def set_aside(self, key: int, seconds: float, reason: str) -> None:
        """Use a credential no more for ``seconds``, in the whole fleet."""
        self.hold(seconds, reason, f"key:{self.key_names[key]}")
        self._learning.in_background(self._pauses.tell())

    def fill(self, key: int, *, full: bool) -> None:
        """Stop or resume starting calls with a credential here."""
        if self._ring.fill(key, full=full):
            for group in self._groups.values():
                group.dispatcher.dispatch()
                if group.dispatcher.paced:
                    group.refill.sync(ask_again=True)  # slots for this credential may be wanted no more, or again

    @property
    def usable_keys(self) -> frozenset[int]:
        """The credentials that are not set aside, from 0."""
        now = monotonic()
        return frozenset(key for key in range(len(self._ring)) if self._ring.aside(key, now) is None)

    @property
    def key_names(self) -> Sequence[str]:
        """What people call the credentials."""
        return self._ring.names

    def status(self) -> LimiterStatus:
        """What this limiter does now."""
        now = monotonic()
        groups = list(self._groups.values())
        paused = self._pauses.of(WHOLE_API)
        by = next((group for group in groups if group.refill.by and group.dispatcher.waiting), None)
        starts = [start for group in groups if (start := group.next_start) is not None]
        return LimiterStatus(
            waiting=self._waiting(),
            held=sum(group.dispatcher.held for group in groups),
            granted=sum(group.refill.granted for group in groups),
            fired=sum(group.dispatcher.fired for group in groups),
            slots_missed=sum(group.dispatcher.missed for group in groups),
            round_trips=sum(group.refill.round_trips for group in groups) + self._leases.round_trips,
            next_start_in_s=max(0.0, min(starts) - now) if starts else None,
            paused_for_s=paused.until - now if paused else 0.0,
            pause_reason=paused.reason if paused else None,
            limited_by=str(by.layout.nodes[by.refill.by - 1].clock.spec) if by else None,
            rate=sum(group.refill.rate() for group in groups),
            guard_s=max(group.refill.guard_s for group in groups),
            lateness_s=self._timing.lateness_s,
            way_s=self._timing.way_s,
            in_flight=self._leases.in_flight,
            permits=self._leases.granted,
            generation=self._overrides.generation,
            keys=self._key_statuses(now),
        )

    def rate(self, traffic: TrafficClass) -> float:
        """Calls per second granted lately to a class of traffic in this process."""
        return sum(group.refill.rate() for (_, own), group in self._groups.items() if own == traffic)

    def reconfigure(self, rules: LimitRules) -> None:
        """Let other limits hold from now on; the credentials stay the same."""
        if rules.learned_pace and not self._rules.learned_pace:
            self._learning.untold.pop_all()  # the pace begins with what was taken until now
        self._rules = rules
        self._timing.adopt(validity_s(rules), fixed_guard_s(rules), window_s=shortest_window_s(rules))
        self._leases.adopt(rules)
        for group in self._groups.values():
            group.dispatcher.permits = self._leases.of(group.layout.model)
            group.use(layout(rules, self._store.keys, group.layout.model, group.layout.traffic))
            self._expect_in(group)
        self._leases.demand()

    def _left_behind(self) -> None:
        """Grant nothing in a forked child: the slots held here belong to its parent."""
        self._stopped = "the limiter was opened before this process was forked: open one in each process"
        self._inherited = list(self._groups.values())  # kept, because collecting their tasks causes warnings
        self._groups.clear()
        self._default = self._add_group("", NORMAL)

    def _group(self, model: str, traffic: TrafficClass) -> Group:
        if model and not self._rules.limits_models:
            model = ""  # no limit of its own: it shares the line of all such calls
        if not model and traffic is NORMAL:
            return self._default
        return self._groups.get((model, traffic)) or self._add_group(model, traffic)

    def _group_of(self, slot: Slot) -> Group | None:
        return next((group for group in self._groups.values() if group.dispatcher is slot.line), None)

    def _add_group(self, model: str, traffic: TrafficClass) -> Group:
        self._drop_idle()
        limits = layout(self._rules, self._store.keys, model, traffic)
        dispatcher = Dispatcher(
            self._timing,
            self._leases.of(model),
            self._ring,
            paced=bool(limits.nodes),
        )
        refill = Refill(self._store, dispatcher, self._timing, self._clock, self._pauses, untold=self._learning.untold)
        refill.use(limits)
        group = self._groups[model, traffic] = Group(limits, dispatcher, refill)
        dispatcher.served = min((other.dispatcher.served for other in self._groups.values()), default=0.0)
        self._expect_in(group)
        self._pauses.enter(group)
        if not self._stopped:
            group.start()
        return group

    def _drop_idle(self) -> None:
        if len(self._groups) <= MOST_IDLE_GROUPS:
            return
        for key, group in list(self._groups.items()):
            if group.idle and group is not self._default:
                del self._groups[key]
                self._learning.in_background(group.aclose())

    def _expect_in(self, group: Group) -> None:
        backlog = self._backlog
        if backlog is not None and not group.layout.counts_tokens:
            traffic, model = group.layout.traffic, group.layout.model
            group.dispatcher.backlog = lambda: backlog(traffic, model)

    def _waiting(self, scope: str = "") -> int:
        groups = list(self._groups.values())
        if scope.startswith("model:"):
            groups = [group for group in groups if group.layout.scopes[0] == scope]
        return sum(group.dispatcher.waiting for group in groups)

    def _permits_changed(self) -> None:
        """Give what is free to the classes that had the least of it, by weight."""
        waiting = [group for group in self._groups.values() if group.dispatcher.waiting]
        if len(waiting) > 1:
            waiting.sort(key=lambda group: group.dispatcher.served / group.layout.weight)
        for group in waiting:
            group.dispatcher.dispatch()
            group.refill.demand()
        self._leases.demand()

    def _override(self, state: InForce) -> None:
        limits = self._configured.limits if state.limits is None else state.limits
        rules = replace(self._configured, limits=limits)
        learned_pace = state.learned_pace and rules.learns_pace
        self.reconfigure(
            replace(rules, learned_pace=learned_pace, learned_in_flight=state.learned_in_flight and rules.learns)
        )

    def _sync(self) -> None:
        for group in self._groups.values():
            group.refill.sync()
        self._leases.sync()

    def _drop_held(self) -> None:
        for group in self._groups.values():
            group.dispatcher.drop_held()
            group.refill.sync(ask_again=True)

    def _on_message(self, message: str) -> None:
        kind, _, rest = message.partition(" ")
        if kind == "boot":
            self._sync()
        elif kind == "row":
            self._learning.heard(int(rest))
        elif kind == "slower":
            self._drop_held()
        elif kind in {"rules", "learned"}:
            self._overrides.look()
        elif kind == "pause":
            left_us, scope, reason = rest.split(" ", 2)
            self._pauses.hold(int(left_us) / 1e6, reason, scope.removeprefix("-"), told=True)
        elif kind == "resume":
            self._pauses.resume(rest.removeprefix("-"))

    def _key_statuses(self, now: float) -> list[KeyStatus]:
        if len(self._ring) == 1:
            return []
        found = ((name, self._ring.aside(key, now)) for key, name in enumerate(self._ring.names))
        return [KeyStatus(name, aside.until - now, aside.reason) if aside else KeyStatus(name) for name, aside in found]


def _cost(tokens: int, output_tokens: int, weight: int) -> Cost:
    if not tokens and weight == 1:
        return ONE_REQUEST
    return Cost(tokens, output_tokens, weight)
