"""The limiter of one API in one process: the face of everything else here."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from time import monotonic

from msgspec.structs import replace
from redis.asyncio import Redis

from callmill.config.cancelling import end_tasks
from callmill.config.forks import in_child
from callmill.errors import InternalError, RedisUnavailableError, UsageError
from callmill.jobs.traffic import NORMAL, TrafficClass
from callmill.limits.channel import Channel
from callmill.limits.clock import RedisClock
from callmill.limits.control import InForce
from callmill.limits.cost import ONE_REQUEST, Cost
from callmill.limits.dispatcher import Dispatcher
from callmill.limits.drift import facts
from callmill.limits.easing import Easing
from callmill.limits.feedback import Observation
from callmill.limits.group import Group
from callmill.limits.groups import Groups, Kind
from callmill.limits.key_ring import KeyRing
from callmill.limits.layout import Layout, layout, learned_nodes
from callmill.limits.learning import Cause, Learning
from callmill.limits.overrides import Overrides
from callmill.limits.pace import Pace
from callmill.limits.pauses import WHOLE_API, Pauses
from callmill.limits.permit_leases import PermitLeases
from callmill.limits.refill import Refill
from callmill.limits.rules import LimitRules, fixed_guard_s, shortest_window_s, validity_s
from callmill.limits.slots import Slot
from callmill.limits.status import KeyStatus, LimiterStatus
from callmill.limits.store import LimitStore
from callmill.limits.timing import Timing
from callmill.limits.turns import LEAVES_FREE, Turn
from callmill.limits.waiting import Acquirers, Caller, Programs, WaitingCalls

START_WAIT_S = 2.0
MOST_IDLE_GROUPS, LOOK_FOR_IDLE_S = 64, 0.25
WEIGHED_FOR_S = 0.05
"""Of more groups than that, it is not looked up for each one anew what all of them want."""

YIELD_S = 0.3
"""After a pause classes that were refused let others go first by so much."""

AHEAD_S = 0.25
"""Where there is no room, slots are of use for the calls that will be over by then."""

_MOST_DIGITS = 18
_NOT_STARTED = "the limiter is not running: await start() first, and acquire nothing after aclose()"


class Limiter:
    """Gives calls their start times so that all processes together keep the limits of one API.

    Made, used and closed on one event loop. While Redis cannot be reached, held slots are fired, then calls wait; they
    go on by themselves when it is back.

    Attributes:
        on_taken, on_refused: Called with what a process ``tell_taken`` or ``tell_refused``, this one included.
    """

    def __init__(self, redis: Redis, name: str, rules: LimitRules, *, worker: str) -> None:
        self.on_taken: Callable[[str], None] = _ignore
        self.on_refused: Callable[[str], None] = _ignore
        self._configured = self._rules = rules
        self._caller: Caller = Programs()
        self._timing = Timing(validity_s(rules), fixed_guard_s(rules), window_s=shortest_window_s(rules))
        self._clock = RedisClock()
        self._store = LimitStore(redis, name, worker)
        self._ring = KeyRing([key.name for key in rules.keys])
        self._groups = Groups(self._rules)
        self._looking: asyncio.TimerHandle | None = None
        self._fired_before: Counter[TrafficClass] = Counter()
        self._refills: dict[Group, Refill] = {}
        self._turns: dict[TrafficClass, Turn] = {}
        self._dispatcher = self._new_dispatcher()
        self._pauses = Pauses(self._store, self._ring, self._layouts, on_paused=self._paused, on_resumed=self._resumed)
        self._leases = PermitLeases(self._store, rules, waiting=self._waiting, on_change=self._permits_changed)
        self._easing = Easing(
            self._store,
            self._pauses,
            self._other_waiting,
            on_waiting=self._leases.exceed,
            on_refused=lambda: self._learning.heard_late(),  # noqa: PLW0108 - it is made below
        )
        self._learning = Learning(
            self._store, self._pauses, self._leases, lambda: self._rules, len(self._ring), easing=self._easing
        )
        self._pace = Pace()
        self._weight, self._weighed_s = 0.0, -math.inf
        self._backlog: Callable[[TrafficClass, str], int] | None = None
        self._channel = Channel(redis, self._store.keys.channel, on_message=self._on_message, on_subscribed=self._sync)
        self._overrides = Overrides(redis, name, on_change=self._override, on_news=self._sync, waiting=self._waiting)
        self._tasks: list[asyncio.Task[None]] = []
        self._stopped = _NOT_STARTED
        self._inherited: list[object] = []
        in_child(self, Limiter._left_behind)
        self._default = self._add_group(("", NORMAL, 1))

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
        for group in self._groups:
            self._expect_in(group)

    async def start(self) -> None:
        """Publish the rules and listen for pauses; without Redis, go on trying in the background."""
        await self._overrides.load()
        await self._refills[self._default].exchange()
        self._tasks = [asyncio.create_task(self._channel.run()), asyncio.create_task(self._overrides.run())]
        self._stopped = ""
        self._leases.start()
        self._look_for_idle_soon()
        for refill in self._refills.values():
            refill.start()
        with suppress(TimeoutError):
            async with asyncio.timeout(START_WAIT_S):
                await self._channel.subscribed.wait()

    async def aclose(self) -> None:
        """Stop; what waits is cancelled, what is settled reaches Redis if it can. Idempotent."""
        self._stopped = self._stopped or _NOT_STARTED
        tasks, self._tasks = self._tasks, []
        await end_tasks(tasks)
        await self._easing.aclose()
        await self._learning.aclose()
        self._dispatcher.close()
        if self._looking is not None:
            self._looking.cancel()
        for calls in (*(group.calls for group in self._groups), *self._groups.waiting):
            if isinstance(calls, Acquirers):
                calls.cancel()
        await asyncio.gather(*(refill.aclose() for refill in self._refills.values()))
        await self._leases.aclose()

    def serve(self, caller: Caller) -> None:
        """Start the calls of a caller from now on, instead of handing out slots; before anything waits."""
        self._caller = caller
        self._dispatcher.close()
        self._dispatcher = self._new_dispatcher()
        for refill in self._refills.values():
            self._learning.in_background(refill.aclose())
        self._groups = Groups(self._rules)
        self._refills.clear()
        self._default = self._add_group(("", NORMAL, 1))

    def wanted(self, traffic: TrafficClass, model: str, weight: int) -> None:
        """Take note that calls of a kind came to wait, or that more of them may start."""
        self._overrides.used()
        kind = self._kind(model, traffic, weight)
        if (group := self._find_group(kind)) is not None:
            self._awaited(group)
        elif self._groups.waiting_as(kind) is None:
            self._line_up(kind)

    def look(self) -> None:
        """Take note that the caller lets calls start again, or other ones."""
        for group in self._groups:
            if not group.calls.wanting:
                continue
            if self._dispatcher.knows(group):
                self._used(group)
            else:
                self._awaited(group)
        self._dispatcher.dispatch()
        self._easing.look()

    def try_acquire(
        self,
        tokens: int = 0,
        *,
        output_tokens: int = 0,
        weight: int = 1,
        model: str = "",
        traffic: TrafficClass = NORMAL,
    ) -> Slot | None:
        """The slot that is due now, or None; never waits, never overtakes a call of its kind that does."""
        self._overrides.used()
        group = self._find_group(self._kind(model, traffic, weight))
        if group is None:
            return None
        slot = group.take_now(_cost(tokens, output_tokens, weight))
        self._used(group)
        return slot

    async def acquire(
        self,
        tokens: int = 0,
        *,
        output_tokens: int = 0,
        weight: int = 1,
        model: str = "",
        traffic: TrafficClass = NORMAL,
    ) -> Slot:
        """Wait for the start time of a call, and return its slot.

        Calls of the same class, model and weight get theirs first come first served in this process. A cancelled waiter
        loses nothing for the others.

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
        kind, cost = self._kind(model, traffic, weight), _cost(tokens, output_tokens, weight)
        group = self._find_group(kind)
        if group is not None and (slot := group.take_now(cost)) is not None:
            self._used(group)
            return slot
        if self._stopped:
            raise UsageError(self._stopped)
        slot = await self._next_slot(kind, cost)
        while not self.accept(slot):
            slot = await self._next_slot(kind, cost, first=True)
        return slot

    async def _next_slot(self, kind: Kind, cost: Cost, *, first: bool = False) -> Slot:
        """Wait behind the others of a kind, or before them."""
        calls = self._calls(kind)
        if not isinstance(calls, Acquirers):
            raise InternalError("a limiter that starts calls by itself has no slots to acquire")
        future = calls.enter(cost, first=first)
        if (group := self._groups.get(kind)) is not None:
            self._awaited(group)
        try:
            return await future
        except asyncio.CancelledError:
            calls.leave(future)
            if future.done() and not future.cancelled():
                self._give_back(future.result())
            raise

    def _give_back(self, slot: Slot) -> None:
        if (group := slot.group) is not None:
            group.give_back(slot)
            self._awaited(group)
            self._ready_again(group)

    def accept(self, slot: Slot) -> bool:
        """Say whether a slot still holds at the moment in which its call really starts; if not, it is gone."""
        return slot.group is None or slot.group.accept(slot)

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
        group = slot.group
        if slot.open and group is not None:
            slot.open = False
            if not slot.refused:
                self._leases.answered(slot)
            slot.give_permits()
            if tokens_used is not None and group.paced:
                output = slot.cost.output_tokens if output_tokens_used is None else output_tokens_used
                used = Cost(tokens_used, min(output, tokens_used), slot.cost.weight)
                group.settlements.settle(slot.key, slot.start, slot.cost, used)
                self._used(group)
        # Also for a slot that was too late: its call had taken a place.
        if group is not None and group.layout.model:
            self._ready_again(group)
        self._dispatcher.freed(last=not self._leases.in_flight)

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

    def refused(self, slot: Slot, after_s: float | None, reason: str, *, cause: Cause = "", witness: str = "") -> None:
        """The API refused a call because of its limits: pause the fleet, and learn from it. Settle the slot after this.

        Args:
            slot: The call's.
            after_s: When the API wants to be asked again; None where it does not say.
            reason: What people are told.
            cause: What there was too much of; empty where it does not say.
            witness: Names the job. A wait longer than any window of the limits is believed when two jobs are told it.
        """
        if (group := slot.group) is not None:
            rate_per_s = self._refills[group].rate() if group in self._refills else 0.0
            self._learning.refused(group, slot, after_s, reason, cause=cause, rate_per_s=rate_per_s, witness=witness)

    def tell_taken(self, what: str) -> None:
        """Tell all processes that the API takes calls of some kind, which others will understand."""
        self._learning.in_background(self._store.publish(f"taken {what}"))

    def tell_refused(self, what: str) -> None:
        """Tell all processes that the API refuses calls of some kind, which others will understand."""
        self._learning.in_background(self._store.publish(f"refusal {what}"))

    def refused_alone(self, slot: Slot, *, forgive_s: float | None = None) -> None:
        """The API refused a call for reasons of its own: pause nothing; forget what was learned in ``forgive_s``."""
        if slot.group is not None:
            self._learning.own(slot.group, slot, forgive_s)

    def feed(self, slot: Slot, observations: Sequence[Observation]) -> None:
        """Take what the headers of a call's answer say of the limits."""
        if slot.group is not None:
            limits = slot.group.layout
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

    def accepted(self, slot: Slot) -> bool:
        """The API took a call: refusals of earlier ones are over; say whether there were any."""
        return self._learning.accepted(slot)

    def set_aside(self, key: int, seconds: float, reason: str, *, traffic: TrafficClass | None = None) -> None:
        """Use a credential no more for ``seconds``, in the whole fleet.

        ``traffic``: only calls of this class were refused with it, so one of another class may try it soon.
        """
        guessed_s, refused = (0.0, "") if traffic is None else (seconds, str(traffic))
        self._pauses.hold(seconds, reason, f"key:{self.key_names[key]}", guessed_s=guessed_s, refused=refused)
        if traffic is not None:
            self._learning.refused_class(traffic)
        self._learning.in_background(self._pauses.tell())

    def fill(self, key: int, *, full: bool) -> None:
        """Stop or resume starting calls with a credential here."""
        if self._ring.fill(key, full=full):
            for group, refill in self._refills.items():
                if group.paced:
                    refill.sync(ask_again=True)  # slots for this credential may be wanted no more, or again
            self.look()

    @property
    def usable_keys(self) -> frozenset[int]:
        """The credentials that are not set aside, from 0."""
        now = monotonic()
        return frozenset(key for key in range(len(self._ring)) if self._ring.aside(key, now) is None)

    @property
    def key_names(self) -> Sequence[str]:
        """What people call the credentials."""
        return self._ring.names

    @property
    def _fired(self) -> int:
        """Calls started."""
        return sum(group.fired for group in self._groups) + self._fired_before.total()

    def status(self) -> LimiterStatus:
        """What this limiter does now."""
        now = monotonic()
        groups, refills = list(self._groups), list(self._refills.values())
        paused = self._pauses.of(WHOLE_API)
        by = next((group for group in groups if self._refills[group].by and group.calls.wanting), None)
        return LimiterStatus(
            waiting=self._waiting(),
            held=sum(len(group.stock) for group in groups),
            granted=sum(refill.granted for refill in refills),
            fired=self._fired,
            slots_missed=sum(group.stock.missed for group in groups),
            round_trips=sum(refill.round_trips for refill in refills) + self._leases.round_trips,
            next_start_in_s=self.next_start_in_s,
            paused_for_s=self.paused_for_s,
            pause_reason=paused.reason if paused else None,
            limited_by=str(by.layout.nodes[self._refills[by].by - 1].clock.spec) if by else None,
            rate=self.rate(),
            guard_s=max(refill.guard_s for refill in refills),
            lateness_s=self._timing.lateness_s,
            way_s=self._timing.way_s,
            in_flight=self._leases.in_flight,
            permits=self._leases.granted,
            generation=self._overrides.generation,
            keys=self._key_statuses(now),
        )

    @property
    def paused_for_s(self) -> float:
        """How long the whole API is paused."""
        paused = self._pauses.of(WHOLE_API)
        return paused.until - monotonic() if paused else 0.0

    @property
    def next_start_in_s(self) -> float | None:
        """When the next call that waits will start, as far as is known."""
        starts = [start for group in self._groups if (start := self._next_start(group)) is not None]
        return max(0.0, min(starts) - monotonic()) if starts else None

    def rate(self, traffic: TrafficClass | None = None) -> float:
        """Calls per second granted lately in this process, to one class of traffic or to all."""
        refills = self._refills.items()
        return sum(refill.rate() for group, refill in refills if traffic is None or group.layout.traffic == traffic)

    def weight_of(self, traffic: TrafficClass) -> float:
        """The part of the limits that a class of traffic gets while all want more."""
        return self._rules.weight_of(traffic)

    def started(self, traffic: TrafficClass) -> int:
        """Calls of a class of traffic that started since this limiter knows it."""
        fired = sum(group.fired for group in self._groups if group.layout.traffic == traffic)
        return fired + self._fired_before[traffic]

    def reconfigure(self, rules: LimitRules) -> None:
        """Let other limits hold from now on; the credentials stay the same."""
        if rules.learned_pace and not self._rules.learned_pace:
            self._learning.untold.pop_all()  # the pace begins with what was taken until now
        self._rules = rules
        self._timing.adopt(validity_s(rules), fixed_guard_s(rules), window_s=shortest_window_s(rules))
        self._leases.adopt(rules)
        self._groups.adopt(rules)
        for group, refill in self._refills.items():
            limits = layout(rules, self._store.keys, group.layout.model, group.layout.traffic)
            group.use(limits, self._leases.of(limits.model, group.turn, str(limits.traffic)))
            self._expect_in(group)
            refill.use_other_limits()
        self._caller.adopt()
        self.look()
        self._leases.demand("")

    def _left_behind(self) -> None:
        """Grant nothing in a forked child: the slots held here belong to its parent."""
        self._stopped = "the limiter was opened before this process was forked: open one in each process"
        self._looking = None
        # Kept, because collecting their tasks causes warnings.
        self._inherited = [self._dispatcher, *self._refills.values()]
        self._dispatcher = self._new_dispatcher()
        self._groups = Groups(self._rules)
        self._refills.clear()
        self._default = self._add_group(("", NORMAL, 1))

    def _kind(self, model: str, traffic: TrafficClass, weight: int) -> Kind:
        # A model without limits of its own shares the group of all such calls.
        return (model if self._rules.limits_models else "", traffic, weight)

    def _find_group(self, kind: Kind) -> Group | None:
        """The group of a kind of calls; None: they wait until this process may tell one more kind apart."""
        if (group := self._groups.get(kind)) is not None:
            return group
        if self._groups.waiting_as(kind) is not None or not self._groups.has_place(kind):
            return None
        return self._add_group(kind)

    def _calls(self, kind: Kind) -> WaitingCalls:
        """Where calls of a kind wait, whether it is told apart or not yet."""
        group = self._find_group(kind)
        return group.calls if group is not None else self._groups.waiting_as(kind) or self._line_up(kind)

    def _line_up(self, kind: Kind) -> WaitingCalls:
        model, traffic, weight = kind
        calls = self._caller.calls(traffic, model, weight)
        self._groups.line_up(kind, calls)
        self._look_for_idle_soon()
        return calls

    def _add_group(self, kind: Kind, calls: WaitingCalls | None = None) -> Group:
        model, traffic, weight = kind
        limits = layout(self._rules, self._store.keys, model, traffic)
        turn = self._turns.setdefault(traffic, Turn(limits.weight))
        calls = calls or self._caller.calls(traffic, model, weight)
        permits = self._leases.of(model, turn, str(traffic))
        group = Group(limits, calls, permits, weight=weight, turn=turn, ring=self._ring, timing=self._timing)
        group.pause(self._pauses.until(limits.scopes[0]))
        self._groups.add(kind, group)
        self._expect_in(group)
        refill = self._refills[group] = Refill(
            self._store,
            group,
            self._timing,
            self._clock,
            self._pauses,
            untold=self._learning.untold,
            usable=self._usable,
            on_slots=self._dispatcher.wake,
        )
        if not self._stopped:
            refill.start()
        if len(self._groups) > MOST_IDLE_GROUPS:
            self._look_for_idle_soon()
        return group

    def _look_for_idle_soon(self) -> None:
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(LOOK_FOR_IDLE_S, self._look_for_idle)

    def _look_for_idle(self) -> None:
        """Forget the kinds of calls that are idle, and tell those apart that wait for their places."""
        self._looking = None
        self._drop_idle()
        while (found := self._groups.next()) is not None:
            kind, calls = found
            self._awaited(self._add_group(kind, calls))
        if not self._stopped and (len(self._groups) > MOST_IDLE_GROUPS or self._groups.waiting):
            self._look_for_idle_soon()

    def _drop_idle(self) -> None:
        for kind, group in self._groups.items():
            refill = self._refills[group]
            if group is not self._default and not group.calls.any and not len(group.stock) and refill.idle:
                self._groups.remove(kind)
                del self._refills[group]
                self._fired_before[kind[1]] += group.fired
                self._dispatcher.forget(group)
                self._learning.in_background(refill.aclose())
        self._leases.keep(self._groups.models)
        classes = self._groups.classes
        self._turns = {traffic: turn for traffic, turn in self._turns.items() if traffic in classes or turn.in_flight}
        self._fired_before = Counter({traffic: self._fired_before[traffic] for traffic in classes})

    def _expect_in(self, group: Group) -> None:
        backlog, limits = self._backlog, group.layout
        if backlog is not None and group.weight == 1 and not limits.counts_tokens:
            group.backlog = lambda: backlog(limits.traffic, limits.model)
        else:
            group.backlog = _none

    def _awaited(self, group: Group) -> None:
        """Take note that calls of a group wait."""
        self._dispatcher.wake(group)
        self._used(group)
        self._leases.demand(group.layout.model)
        self._easing.look()

    def _ready_again(self, group: Group) -> None:
        """Take note that a permit came free of which calls of the same model may have been short."""
        if self._leases.has_own(group.layout.model):
            for other in self._groups.of_model(group.layout.model):
                self._dispatcher.make_ready(other)

    def _used(self, group: Group) -> None:
        """Take note that slots of a group were used or wasted."""
        if group.paced and (refill := self._refills.get(group)) is not None:
            refill.demand()

    def _new_dispatcher(self) -> Dispatcher:
        return Dispatcher(self._caller, on_used=self._used, on_no_permit=self._lacks_permit)

    def _lacks_permit(self, group: Group) -> None:
        self._leases.demand(group.layout.model)

    def _permits_changed(self, scope: str) -> None:
        for group in self._groups_of(scope):
            if group.calls.wanting:
                self._dispatcher.make_ready(group)
        self._dispatcher.dispatch()

    def _groups_of(self, scope: str) -> Iterable[Group]:
        """The groups of a model ('model:NAME'), of everything else all."""
        kind, _, name = scope.partition(":")
        return self._groups.of_model(name) if kind == "model" else self._groups

    def _next_start(self, group: Group) -> float | None:
        """When the next call that waits will start, as far as is known."""
        held = group.stock.next_start
        return held if held is not None or not group.calls.wanting else self._refills[group].upcoming

    def _usable(self, group: Group, wanted: int) -> int:
        """How many of so many slots of a group will find a place for their calls, beside those of other classes."""
        room = self._caller.room() if group.turn.in_flight < LEAVES_FREE * self._caller.places() else 0
        if room >= wanted:
            return wanted
        now = monotonic()
        if len(self._groups) <= MOST_IDLE_GROUPS or now - self._weighed_s > WEIGHED_FOR_S:
            weights = {other.turn: other.turn.weight for other in self._groups if other.calls.wanting}
            self._weight, self._weighed_s = sum(weights.values()), now
            self._pace.per_s(self._fired, now)
        share = group.turn.weight / max(self._weight, group.turn.weight)
        # Its own pace alone would keep it slow: it would ask for one slot at a time, each behind a turn of the others.
        pace = max(group.pace.per_s(group.fired, now), share * self._pace.latest_per_s)
        return max(int(room * share), int(pace * AHEAD_S), 1)

    def _layouts(self) -> list[Layout]:
        return [group.layout for group in self._groups]

    def _waiting(self, scope: str = "") -> int:
        """How many calls of a scope would start if nothing of it held them back."""
        return min(sum(group.calls.wanting for group in self._groups_of(scope)), self._caller.room())

    def _other_waiting(self, scope: str, refused: frozenset[str]) -> str | None:
        """A class that was not refused and whose calls wait in a scope; None: there is none."""
        classes = (str(group.layout.traffic) for group in self._groups_of(scope) if group.calls.wanting)
        return next((traffic for traffic in classes if traffic not in refused), None)

    def _paused(self, scope: str) -> None:
        self._pauses_changed(scope)
        self._easing.paused(scope)

    def _pauses_changed(self, paused: str, *, yields: bool = False) -> None:
        now = monotonic()
        for group in (groups := self._groups_of(paused)):
            until = self._pauses.until(scope := group.layout.scopes[0])
            if self._easing.is_refused(str(group.layout.traffic)) and (yields or self._easing.others_wait(scope)):
                until = max(until, now) + YIELD_S
            if until != group.paused_until:
                group.pause(until)
            self._dispatcher.make_ready(group)
        self._dispatcher.dispatch()
        for group in groups:
            self._used(group)

    def _resumed(self, scope: str) -> None:
        for group in self._groups_of(scope):
            self._refills[group].sync(ask_again=True)
        self._pauses_changed(scope, yields=True)

    def _override(self, state: InForce) -> None:
        limits = self._configured.limits if state.limits is None else state.limits
        rules = replace(self._configured, limits=limits)
        learned_pace = state.learned_pace and rules.learns_pace
        self.reconfigure(
            replace(rules, learned_pace=learned_pace, learned_in_flight=state.learned_in_flight and rules.learns)
        )

    def _sync(self) -> None:
        for refill in self._refills.values():
            refill.sync()
        self._leases.sync()

    def _drop_held(self) -> None:
        for group, refill in self._refills.items():
            group.stock.drop_all()
            refill.sync(ask_again=True)

    def _on_message(self, message: str) -> None:
        kind, _, rest = message.partition(" ")
        if kind == "boot" and rest:
            self._leases.sync_one(rest)  # new permits: there are some of each model, no affair of all others
        elif kind == "boot":
            self._sync()
        elif kind == "lack":
            self._leases.sync_one(rest.removeprefix("-"))
        elif kind == "slower":
            self._drop_held()
        elif kind in {"rules", "learned"}:
            self._overrides.look()
        elif kind == "pause":
            left_us, scope, reason = rest.split(" ", 2)
            scope = scope.removeprefix("-")
            self._pauses.hold(_natural(left_us) / 1e6, reason, scope, told=True)
            self._learning.heard_pause()
            self._easing.paused(scope)  # Redis knows of it now
        elif kind == "resume":
            self._pauses.resume(rest.removeprefix("-"))
        else:
            self._on_news_of_refusals(kind, rest)

    def _on_news_of_refusals(self, kind: str, rest: str) -> None:
        if kind == "row":
            self._learning.heard(_natural(rest))
        elif kind == "taken":
            self.on_taken(rest)
        elif kind == "refusal":
            self.on_refused(rest)
        elif kind == "refused":
            self._easing.refused(rest)
            self._easing.look()

    def _key_statuses(self, now: float) -> list[KeyStatus]:
        if len(self._ring) == 1:
            return []
        found = ((name, self._ring.aside(key, now)) for key, name in enumerate(self._ring.names))
        return [KeyStatus(name, aside.until - now, aside.reason) if aside else KeyStatus(name) for name, aside in found]


def _ignore(_told: str) -> None:
    pass


def _none() -> int:
    return 0


def _natural(written: str) -> int:
    if len(written) > _MOST_DIGITS or not (written.isascii() and written.isdecimal()):
        raise ValueError(f"{written[:_MOST_DIGITS]!r} is no number")
    return int(written)


def _cost(tokens: int, output_tokens: int, weight: int) -> Cost:
    if not tokens and weight == 1:
        return ONE_REQUEST
    return Cost(tokens, output_tokens, weight)
