"""Keeps Redis and one group's slots in touch: reserves ahead, settles, and catches up after every fault."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from time import monotonic
from typing import Protocol

from callmill.errors import RedisUnavailableError
from callmill.limits.clock import RedisClock
from callmill.limits.cost import NOTHING, Columns, Cost, beyond
from callmill.limits.dues import Dues
from callmill.limits.layout import Layout
from callmill.limits.quota_log import QuotaLog
from callmill.limits.rules import COLUMNS
from callmill.limits.slots import Dispatcher, Slot
from callmill.limits.store import Doubt, Grant, LimitStore, Request
from callmill.limits.taken_lately import Untold
from callmill.limits.timing import Timing

MOST_CALLS = 512
EXCHANGE_GAP_S, GAP_PER_CALL_S = 0.010, 0.001
"""Between exchanges calls gather, the longer the more came last time: few calls are not made to wait for company."""

SETTLE_WITHIN_S = 0.250
FIRST_BACKOFF_S = 0.050
LONGEST_BACKOFF_S = 1.0
RATE_OVER_S = 5.0
LOOK_EVERY_S = 1.0
LONG_AGO_S = 1e6
LONGEST_PACED_S = 60.0
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
    """One task per group; all exchanges about its slots go through it, one at a time."""

    def __init__(
        self,
        store: LimitStore,
        dispatcher: Dispatcher,
        timing: Timing,
        clock: RedisClock,
        pauses: Pauses,
        *,
        untold: Untold,
    ) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._timing = timing
        self._clock = clock
        self._pauses = pauses
        self._untold = untold
        self._wake = asyncio.Event()
        self._asleep_until = 0.0
        self._boot, self._seq = "", 0
        self._stepped = self._new_rules = False
        self._looked_s = -LONG_AGO_S
        self._latest_s = -LONG_AGO_S
        self._heaviest, self._heaviest_s = 1, -LONG_AGO_S
        self._ask_at = 0.0
        self._exchanged_at, self._gap_s = -LONG_AGO_S, 0.0
        self._not_before = 0.0
        self._backoff_s = 0.0
        self._settle_at = math.inf
        self._sync_at = 0.0
        self._grants: deque[tuple[float, int]] = deque()
        self.granted = 0
        self.round_trips = 0
        self.by = 0
        self.upcoming: float | None = None
        self.guard_s = timing.guard_s
        dispatcher.accounts = self

    def use(self, layout: Layout) -> None:
        """Reserve from these limits from now on."""
        self.layout = layout
        columns = frozenset(COLUMNS[node.clock.spec.unit] for node in layout.nodes)
        self._dues = Dues(taken_back=layout.taken_back(), charged=columns)
        self._quota_log = QuotaLog(layout)
        self._published = False
        self.by = 0

    async def run(self) -> None:
        """Exchange whenever there is something to exchange, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            now = monotonic()
            at = self._next_at()
            if at <= now:
                await self.exchange()
                continue
            self._wake.clear()
            self._asleep_until = at
            timer = loop.call_later(at - now, self._wake.set) if at < math.inf else None
            await self._wake.wait()
            self._asleep_until = 0.0
            if timer is not None:
                timer.cancel()

    def forget_guard(self) -> None:
        """Other limits hold: let the guard be what workers ask for from now on."""
        self._new_rules = True

    def demand(self) -> None:
        """A call waits: see whether it needs a slot."""
        if self._next_at() < self._asleep_until:
            self._wake.set()

    def rebind(self, slot: Slot, cost: Cost) -> None:
        """Charge what a call costs beyond what its slot reserved, or give back the difference."""
        self._owe(slot, beyond(cost.columns, slot.cost.columns), beyond(slot.cost.columns, cost.columns))

    def settle(self, slot: Slot, used: Cost) -> None:
        """Charge what a call really cost, within 250 ms."""
        if used != slot.cost:
            reserved, real = slot.cost.columns, (slot.cost.weight, *used.columns[1:])
            self._owe(slot, beyond(real, reserved), beyond(reserved, real))

    def void(self, slot: Slot) -> None:
        """Give back what a slot without a call had reserved."""
        self._quota_log.take_back(slot)
        self._owe(slot, NOTHING, slot.cost.columns)

    def sync(self, *, ask_again: bool = False) -> None:
        """Look at the state in Redis soon: it may have begun a new life, or a pause may have been missed.

        ``ask_again``: what was learnt of when to ask holds no more.
        """
        self._sync_at = 0.0
        if ask_again:
            self._ask_at = 0.0
        self._wake.set()

    def rate(self) -> float:
        """Calls per second granted lately."""
        now = monotonic()
        while self._grants and self._grants[0][0] < now - RATE_OVER_S:
            self._grants.popleft()
        return sum(count for _, count in self._grants) / RATE_OVER_S

    @property
    def idle(self) -> bool:
        """Whether nothing is owed."""
        return not self._dues

    async def exchange(self) -> None:
        """One round trip; a failure delays the next one, up to a second."""
        calls = max(0, min(MOST_CALLS, self._dispatcher.uncovered()))
        gives_back = bool(self._dues) and self.layout.quotas
        if self._ask_at > monotonic() and not gives_back:
            calls = 0  # of a quota, what is given back is free at once: the promise reckoned without it
        costs = self._dispatcher.costs(calls)
        dues, self._dues, self._settle_at = self._dues, self._dues.empty(), math.inf
        layout = self.layout
        sent = monotonic()
        self._exchanged_at, self._gap_s = sent, min(EXCHANGE_GAP_S, calls * GAP_PER_CALL_S)
        try:
            if not self._published:
                await self._store.publish_rules(layout)
                self._published = layout is self.layout  # it may have been changed meanwhile
            sent = monotonic()
            request = self._request(costs, dues, sent)
            grant = await self._store.reserve(layout, request)
            restored = await self._restore(grant.boot, sent)
            await self._pauses.tell()
        except RedisUnavailableError as error:
            self._dues.keep_charges(dues)
            self._back_off(error)
        else:
            self._backoff_s = 0.0
            self._new_rules &= request.doubt != "rules" or layout is not self.layout
            self._take(grant, costs, sent, usable=not restored)

    def _owe(self, slot: Slot, dearer: Columns, unused: Columns) -> None:
        self._dues.add(slot.key, slot.start, dearer, unused)
        if self._dues and self._settle_at == math.inf:
            self._settle_at = monotonic() + SETTLE_WITHIN_S
            if self._asleep_until > self._settle_at:
                self._wake.set()

    def _request(self, costs: list[Cost], dues: Dues, now: float) -> Request:
        plain = all(cost.weight == 1 and not cost.tokens for cost in costs)
        return Request(
            boot=self._boot,
            seq=self._seq,
            latest_us=round((self._latest_s - now) * 1e6),
            heaviest=self._heaviest,
            lead_us=round(self._timing.lead_s * 1e6),
            guard_us=round(self._timing.guard_s * 1e6),
            doubt=self._doubt(now),
            settlements=dues.settlements(now),
            allowances=[min(len(costs), self._dispatcher.uncovered_of(key)) for key in range(self.layout.key_count)],
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
        grants = self._quota_log.grants(now) if self._boot and boot != self._boot and not boot.endswith("kept") else []
        if grants:
            await self._store.restore(boot, self.layout.quotas, grants)
        return bool(grants)

    def _take(self, grant: Grant, costs: list[Cost], sent: float, *, usable: bool) -> None:
        now = monotonic()
        self.round_trips += 1
        self._timing.round_trip(now - sent, now, grant.guard_us / 1e6)
        if grant.boot != self._boot:
            self._clock.forget()
            self._ask_at = 0.0
        self._boot, self._seq = grant.boot, grant.seq
        # After a jump of its clock nobody knows when the slots lie that others hold: begin a new life of the state.
        self._stepped = self._clock.observe(grant.now_us, sent, now)
        here = self._clock.local_s(grant.now_us, now)
        self._sync_at = 0.0 if self._stepped else math.inf
        self.guard_s = grant.guard_us / 1e6
        self._pauses.heard(self.layout, grant, sent, here)
        if costs:
            self.by = grant.by
            self.upcoming = here + grant.upcoming_us / 1e6 if grant.upcoming_us >= 0 else None
            self._ask_at = here + grant.again_us / 1e6 if usable else 0.0
        if grant.starts_us:
            slots = [
                Slot(here + start / 1e6, cost, key - 1, line=self._dispatcher)
                for start, key, cost in zip(grant.starts_us, grant.keys, costs, strict=False)
            ]
            if usable and not self._stepped:
                self._use(slots, now)
            else:
                for slot in slots:
                    self._owe(slot, NOTHING, slot.cost.columns)

    def _use(self, slots: list[Slot], now: float) -> None:
        self.granted += len(slots)
        self._grants.append((now, len(slots)))
        self._latest_s = max(self._latest_s, slots[-1].start)
        heaviest = max(slot.cost.weight for slot in slots)
        if heaviest >= self._heaviest or self._latest_s - self._heaviest_s > LONGEST_PACED_S:
            self._heaviest, self._heaviest_s = heaviest, self._latest_s
        self._quota_log.add(slots)
        self._dispatcher.add(slots)

    def _next_at(self) -> float:
        at = min(self._settle_at, self._sync_at)
        if self._dispatcher.uncovered() > 0:
            at = min(at, max(self._ask_at, self._exchanged_at + self._gap_s))
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
