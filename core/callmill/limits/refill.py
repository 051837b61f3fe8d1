"""Keeps Redis and one group's slots in touch: reserves ahead, settles, and catches up after every fault."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Protocol

from callmill.config.cancelling import end_tasks
from callmill.errors import RedisUnavailableError
from callmill.limits.clock import RedisClock
from callmill.limits.cost import NOTHING, Cost
from callmill.limits.group import Group
from callmill.limits.layout import Layout
from callmill.limits.reservation import Doubt, Grant, Request, Settlement
from callmill.limits.slots import Slot
from callmill.limits.store import LimitStore
from callmill.limits.taken_lately import Untold
from callmill.limits.timing import Timing

MOST_CALLS, FIRST_CALLS = 512, 16
"""Slots that are held at most, and at first."""

EXCHANGE_GAP_S, GAP_PER_CALL_S = 0.010, 0.001
"""Between exchanges calls gather, the longer the more came last time: few calls are not made to wait for company."""

LONGEST_WAIT_S, FEW_CALLS = 0.100, 16
"""While slots are held, more are asked for when half of the time until the last one has passed, or so much of it. Where
few calls have none, each asks at once: it would come behind calls of other processes that came later."""

SLOWEST_PER_S, DENSE = 1000.0, 1.5
"""Any process can start so many calls a second. Slots that come faster than that, and than this factor of the pace at
which it does, are dense: it is not the limit that holds it up."""

FIRST_BACKOFF_S = 0.050
LONGEST_BACKOFF_S = 1.0
RATE_OVER_S = 5.0
LOOK_EVERY_S = 1.0
LONG_AGO_S = 1e6
LONGEST_PACED_S, LEAST_PACED_S = 60.0, 2.0
"""No call keeps a pace busy for longer: what it counts as fits in a window."""

log = logging.getLogger(__name__)


class Pauses(Protocol):
    """Who keeps an API's pauses in this process."""

    def heard(self, layout: Layout, grant: Grant, sent: float, here: float) -> None:
        """An exchange told which pauses are in force; ``sent``, ``here``: when it was asked, and when it answered."""
        ...

    async def tell(self) -> None:
        """Tell Redis those that it does not know."""
        ...


class Refill:
    """One task per group; all exchanges about its slots go through it, one at a time.

    Attributes:
        granted: Slots granted since the start.
        by: Which of the group's limits, from 1, held the last grant back; 0: none.
        upcoming: When the first call starts that has no slot yet, as far as is known.
        guard_s: The guard in force.
    """

    def __init__(
        self,
        store: LimitStore,
        group: Group,
        timing: Timing,
        clock: RedisClock,
        pauses: Pauses,
        *,
        untold: Untold,
        usable: Callable[[Group, int], int],
        on_slots: Callable[[Group], None],
    ) -> None:
        self.granted = 0
        self.round_trips = 0
        self.by = 0
        self.upcoming: float | None = None
        self.guard_s = timing.guard_s
        self._store = store
        self._group = group
        self._timing = timing
        self._clock = clock
        self._pauses = pauses
        self._untold = untold
        self._usable = usable
        self._on_slots = on_slots
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._asleep_until = 0.0
        self._published: Layout | None = None
        self._boot, self._seq = "", 0
        self._stepped = self._new_rules = self._learns_anew = self._leaves = False
        self._looked_s = self._latest_s = self._exchanged_s = -LONG_AGO_S
        self._ask_at = self._low_at = self._not_before = self._sync_at = 0.0
        self._gap_s = self._backoff_s = self._pace_per_s = 0.0
        self._most = FIRST_CALLS
        self._is_dense = False
        self._used_before = self._missed_before = 0
        self._grants: deque[tuple[float, int]] = deque()

    def start(self) -> None:
        """Reserve slots from now on."""
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(tell_if_died)

    async def aclose(self) -> None:
        """Reserve no more; what is held is void, and what is owed reaches Redis if it can. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            await end_tasks([task])
            self._group.stock.drop_all()
            self._leaves = True
            async with self._store.turns.turn(str(self._group.layout.traffic)):
                await self.exchange(calls=0)

    def use_other_limits(self) -> None:
        """Take note that other limits hold: the guard is what workers ask for from now on."""
        self._new_rules, self.by = True, 0
        self.sync(ask_again=True)

    def demand(self) -> None:
        """See whether slots are needed, and sooner than was thought."""
        if self._asleep_until and self._next_at(self._asleep_until) < self._asleep_until:
            self._wake.set()

    def sync(self, *, ask_again: bool = False) -> None:
        """Look at the state in Redis soon: it may have begun a new life, or a pause may have been missed.

        ``ask_again``: what was learnt of when to ask holds no more.
        """
        self._sync_at = 0.0
        if ask_again:
            self._ask_at, self._learns_anew = 0.0, True
        self._wake.set()

    def rate(self) -> float:
        """Calls per second granted lately."""
        now = monotonic()
        while self._grants and self._grants[0][0] < now - RATE_OVER_S:
            self._grants.popleft()
        return sum(count for _, count in self._grants) / RATE_OVER_S

    @property
    def idle(self) -> bool:
        """Whether nothing is owed, and no granted call keeps a pace busy."""
        return not self._group.settlements and monotonic() - self._latest_s > self._busy_s()

    def _busy_s(self) -> float:
        """How long a call keeps the slowest of its paces busy."""
        group = self._group
        clocks = [node.clock for node in group.layout.nodes if not node.clock.quota and node.clock.amount]
        longest_us = max((clock.window_us / clock.amount for clock in clocks), default=0.0)
        if any(clock.spec.unit.is_tokens for clock in clocks):
            return LONGEST_PACED_S
        return min(LONGEST_PACED_S, max(LEAST_PACED_S, 2 * group.weight * longest_us / 1e6))

    async def exchange(self, *, calls: int | None = None) -> None:
        """One round trip, for so many calls or those that lack slots; a failure delays the next, up to a second."""
        group, layout = self._group, self._group.layout
        due: list[Settlement] = []
        try:
            if self._published is not layout:
                await self._store.publish_rules(layout)
                self._published = layout
            sent = self._exchanged_s = monotonic()
            self._sync_at, self._learns_anew = math.inf, False  # what comes from now on, this exchange may not know
            costs = group.costs(self._calls(sent) if calls is None else calls)
            self._gap_s = min(EXCHANGE_GAP_S, len(costs) * GAP_PER_CALL_S)
            due = group.settlements.take(sent)
            request = self._request(costs, due, sent)
            grant = await self._store.reserve(layout, request)
            restored = await self._restore(grant.boot, sent)
            await self._pauses.tell()
        except RedisUnavailableError as error:
            group.settlements.keep_charges(due)
            self._back_off(error)
        else:
            self._backoff_s = 0.0
            self._new_rules &= request.doubt != "rules" or layout is not group.layout
            self._take(grant, costs, sent, usable=not restored)

    async def _run(self) -> None:
        """Exchange whenever there is something to exchange, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            now = monotonic()
            at = self._next_at()
            if at <= now:
                async with self._store.turns.turn(str(self._group.layout.traffic)):
                    await self.exchange()
                continue
            self._wake.clear()
            self._asleep_until = at
            timer = loop.call_later(at - now, self._wake.set) if at < math.inf else None
            await self._wake.wait()
            self._asleep_until = 0.0
            if timer is not None:
                timer.cancel()

    def _calls(self, now: float) -> int:
        """How many slots to ask for now."""
        group = self._group
        gives_back = bool(group.settlements) and group.layout.quotas
        if self._ask_at > now and not gives_back:
            return 0  # of a quota, what is given back is free at once: the promise reckoned without it
        return self._calls_lacking()

    def _calls_lacking(self) -> int:
        """Slots of use now: for calls that lack one, as far as there is room for them, or will be."""
        held, lacking = len(self._group.stock), self._group.lacks()
        if lacking > 0:
            lacking = min(lacking, self._most - held, self._usable(self._group, held + lacking) - held)
        return max(0, lacking)

    def _request(self, costs: list[Cost], due: list[Settlement], now: float) -> Request:
        group = self._group
        plain = group.weight == 1 and not group.layout.counts_tokens
        return Request(
            boot=self._boot,
            seq=self._seq,
            latest_us=round((self._latest_s - now) * 1e6),
            heaviest=group.weight,
            lead_us=round(self._timing.lead_s * 1e6),
            guard_us=round(self._timing.guard_s * 1e6),
            doubt=self._doubt(now),
            leaves=self._leaves,
            settlements=due,
            allowances=[min(len(costs), group.lacks_of(key)) for key in range(group.layout.key_count)],
            taken=self._untold.pop_all(),
            calls=len(costs),
            costs=() if plain else [cost.columns for cost in costs],
        )

    def _doubt(self, now: float) -> Doubt:
        """Why the state may not be what it seems. A server that took over shows by a broken connection, as a rule."""
        if self._stepped:
            return "stepped"
        if self._new_rules:
            return "rules"
        if not self._backoff_s and now - self._looked_s < LOOK_EVERY_S:
            return ""
        self._looked_s = now
        return "look"

    async def _restore(self, boot: str, now: float) -> bool:
        """Tell a life of the state that began empty what this process was granted of quotas before."""
        if not self._boot or boot == self._boot or boot.endswith("kept"):
            return False
        grants = self._group.settlements.quota_log.grants(now)
        if grants:
            await self._store.restore(boot, self._group.layout.quotas, grants)
        return bool(grants)

    def _take(self, grant: Grant, costs: list[Cost], sent: float, *, usable: bool) -> None:
        now, group = monotonic(), self._group
        self.round_trips += 1
        self._timing.round_trip(now - sent, now, grant.guard_us / 1e6)
        if grant.boot != self._boot:
            self._clock.forget()
            self._ask_at = 0.0
        self._boot, self._seq = grant.boot, grant.seq
        # After a jump of its clock nobody knows when the slots lie that others hold: begin a new life of the state.
        self._stepped = self._clock.observe(grant.now_us, sent, now)
        here = self._clock.local_s(grant.now_us, now)
        if self._stepped:
            self._sync_at = 0.0
        self.guard_s = grant.guard_us / 1e6
        self._pauses.heard(group.layout, grant, sent, here)
        slots = [
            Slot(here + start / 1e6, cost, key - 1, group=group)
            for start, key, cost in zip(grant.starts_us, grant.keys, costs, strict=False)
        ]
        if costs:
            self._learn_most(len(costs), slots)
            self.by = grant.by
            self.upcoming = here + grant.upcoming_us / 1e6 if grant.upcoming_us >= 0 else None
            self._ask_at = here + grant.again_us / 1e6 if usable and not self._learns_anew else 0.0
        if usable and not self._stepped:
            self._add(slots, now)
        else:
            for slot in slots:
                group.settlements.owe(slot.key, slot.start, NOTHING, slot.cost.columns)

    def _learn_most(self, asked: int, slots: list[Slot]) -> None:
        """Hold as many slots as can be used: more while they are used up too soon, fewer when some come too late.

        Slots that lie closer together than this process starts calls would be lost to everybody. Where they lie apart,
        being late is an accident, which fewer slots would not prevent.
        """
        group = self._group
        used, missed = group.fired - self._used_before, group.stock.missed - self._missed_before
        ran_dry = group.take_ran_dry()
        self._used_before, self._missed_before = group.fired, group.stock.missed
        if len(slots) > 1:
            apart_s = (slots[-1].start - slots[0].start) / (len(slots) - 1)
            self._pace_per_s = group.pace.per_s(group.fired, monotonic())
            self._is_dense = apart_s * max(SLOWEST_PER_S, DENSE * self._pace_per_s) < 1
        used += int(self._pace_per_s * self._timing.lead_s)  # until those that are asked for are due
        if missed and self._is_dense:
            self._most = min(MOST_CALLS, max(self._most // 2, used + used // 4 + 1))
        elif len(slots) == asked and (ran_dry or not self._is_dense):
            self._most = min(MOST_CALLS, self._most + used // 4 + 1 if self._is_dense else 2 * self._most)

    def _add(self, slots: list[Slot], now: float) -> None:
        if not slots:
            return
        group = self._group
        self.granted += len(slots)
        self._grants.append((now, len(slots)))
        self._latest_s = max(self._latest_s, slots[-1].start)
        if group.layout.quotas:
            for slot in slots:
                group.settlements.quota_log.count(slot.key, slot.start, slot.cost.columns)
        group.stock.add(slots)
        group.stock.drop_before(group.paused_until)
        if (last := group.stock.last_start) is not None:
            self._low_at = now + self._enough_s(last - now)
        self._on_slots(group)

    def _enough_s(self, last_s: float) -> float:
        """For how long the slots held are enough, of which the last one is due in so many seconds."""
        enough_s = min((last_s + self._timing.validity_s) / 2, LONGEST_WAIT_S)
        if self._is_dense and self._pace_per_s:
            enough_s = min(enough_s, max(0.0, len(self._group.stock) / self._pace_per_s - self._timing.lead_s))
        return enough_s

    def _next_at(self, latest: float = math.inf) -> float:
        """When to exchange next; ``latest``, if that is sooner."""
        at = min(self._group.settlements.due_at, self._sync_at, latest)
        held = len(self._group.stock)
        low_at = self._low_at if held and self._group.calls.wanting > held + FEW_CALLS else 0.0
        ask_at = max(self._ask_at, low_at, self._exchanged_s + self._gap_s)
        if ask_at < at and self._calls_lacking() > 0:
            at = ask_at
        return max(at, self._not_before)

    def _back_off(self, error: RedisUnavailableError) -> None:
        if self._backoff_s == 0.0:
            log.warning(
                "no new slots of %s for now: %s",
                *(self._store.name, error),
                extra={"action": "limiter_waits", "api": self._store.name},
            )
        self._backoff_s = min(LONGEST_BACKOFF_S, max(FIRST_BACKOFF_S, 2 * self._backoff_s))
        self._not_before = monotonic() + self._backoff_s
        self._sync_at = 0.0


def tell_if_died(task: asyncio.Task[None]) -> None:
    """Log the bug that ended a task that nobody awaits: its calls would wait without anybody knowing why."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("a part of the limiter died", exc_info=error, extra={"action": "limiter_died"})
