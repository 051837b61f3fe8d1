"""Keeps Redis and this process's slots in touch: reserves ahead, settles, and catches up after every fault."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from time import monotonic

from msgspec import Struct

from callmill.errors import RedisUnavailableError
from callmill.limits.clock import RedisClock
from callmill.limits.slots import Dispatcher, Slot
from callmill.limits.store import Grant, LimitStore, Request
from callmill.limits.timing import Timing

MOST_CALLS = 128
EXCHANGE_GAP_S = 0.010
SETTLE_WITHIN_S = 0.250
FIRST_BACKOFF_S = 0.050
LONGEST_BACKOFF_S = 1.0
RATE_OVER_S = 5.0
LONG_AGO_S = 1e6

log = logging.getLogger(__name__)


class Dues(Struct):
    """What is to be settled with the next exchange.

    Attributes:
        charge: Tokens used beyond what was reserved.
        refund: Tokens reserved and not used.
        unfired: Slots that passed without a call.
        since: The earliest start that ``refund`` and ``unfired`` belong to.
    """

    charge: int = 0
    refund: int = 0
    unfired: int = 0
    since: float = math.inf


class Refill:
    """One task per limiter; all exchanges about slots go through it, one at a time.

    ``counts_tokens``: some limit counts tokens. ``counts_calls``: some quota counts calls, and gets unfired slots back.
    """

    def __init__(
        self, store: LimitStore, dispatcher: Dispatcher, timing: Timing, *, counts_tokens: bool, counts_calls: bool
    ) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._timing = timing
        self._counts_tokens = counts_tokens
        self._counts_calls = counts_calls
        self._clock = RedisClock()
        self._wake = asyncio.Event()
        self._asleep_until = 0.0
        self._boot, self._seq = "", 0
        self._latest_s = -LONG_AGO_S
        self._ask_at = 0.0
        self._exchanged_at = -LONG_AGO_S
        self._not_before = 0.0
        self._backoff_s = 0.0
        self._dues, self._settle_at = Dues(), math.inf
        self._sync_at = 0.0
        self._published = False
        self._told_pause = 0.0
        self._grants: deque[tuple[float, int]] = deque()
        self.granted = 0
        self.round_trips = 0
        self.by = 0
        self.guard_s = timing.guard_s
        dispatcher.on_settle = self.settle
        dispatcher.on_void = self.void
        dispatcher.on_need = self.demand

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

    def demand(self) -> None:
        """A call waits: see whether it needs a slot."""
        if self._next_at() < self._asleep_until:
            self._wake.set()

    def settle(self, slot: Slot, tokens: int) -> None:
        """Charge (or, below 0, give back) tokens of a slot with the next exchange, within 250 ms."""
        if not self._counts_tokens or tokens == 0:
            return
        if tokens > 0:
            self._dues.charge += tokens
        else:
            self._dues.refund -= tokens
            self._dues.since = min(self._dues.since, slot.start)
        self._owe()

    def void(self, slot: Slot) -> None:
        """Give back what a slot without a call had reserved."""
        self.settle(slot, -slot.tokens)
        if self._counts_calls:
            self._dues.unfired += 1
            self._dues.since = min(self._dues.since, slot.start)
            self._owe()

    def _owe(self) -> None:
        if self._settle_at == math.inf:
            self._settle_at = monotonic() + SETTLE_WITHIN_S
            if self._asleep_until > self._settle_at:
                self._wake.set()

    def sync(self) -> None:
        """Look at the state in Redis soon: it may have begun a new life, or a pause may have been missed."""
        self._sync_at = 0.0
        self._wake.set()

    def rate(self) -> float:
        """Calls per second granted lately."""
        now = monotonic()
        while self._grants and self._grants[0][0] < now - RATE_OVER_S:
            self._grants.popleft()
        return sum(count for _, count in self._grants) / RATE_OVER_S

    async def tell_pause(self) -> None:
        """Tell the pause in force here to Redis, now, or as soon as it can be reached."""
        until = self._dispatcher.paused_until
        left_s = until - monotonic()
        if until > self._told_pause and left_s > 0:
            told, self._told_pause = self._told_pause, until
            try:
                await self._store.pause(left_s, self._dispatcher.pause_reason or "")
            except RedisUnavailableError:
                self._told_pause = told
                self.sync()

    async def exchange(self) -> None:
        """One round trip; a failure delays the next one, up to a second."""
        calls = max(0, min(MOST_CALLS, self._dispatcher.uncovered()))
        if self._ask_at > monotonic():
            calls = 0
        costs = self._dispatcher.costs(calls) if self._counts_tokens else [0] * calls
        dues, self._dues, self._settle_at = self._dues, Dues(), math.inf
        sent = monotonic()
        self._exchanged_at = sent
        try:
            if not self._published:
                await self._store.publish_rules()
                self._published = True
            sent = monotonic()
            grant = await self._store.reserve(self._request(calls, costs, dues, sent))
            await self.tell_pause()
        except RedisUnavailableError as error:
            # Whether it was taken is unknown: charging twice is safe, giving back twice is not.
            self._dues.charge += dues.charge
            self._back_off(error)
        else:
            self._backoff_s = 0.0
            self._take(grant, costs, sent)

    def _request(self, calls: int, costs: list[int], dues: Dues, now: float) -> Request:
        return Request(
            boot=self._boot,
            seq=self._seq,
            latest_us=round((self._latest_s - now) * 1e6),
            lead_us=round(self._timing.lead_s * 1e6),
            guard_us=round(self._timing.guard_s * 1e6),
            charge=dues.charge,
            refund=dues.refund,
            unfired=dues.unfired,
            since_us=round((dues.since - now) * 1e6) if dues.since < math.inf else 0,
            calls=calls,
            costs=costs if self._counts_tokens else (),
        )

    def _take(self, grant: Grant, costs: list[int], sent: float) -> None:
        now = monotonic()
        self.round_trips += 1
        self._timing.round_trip(now - sent, now)
        if grant.boot != self._boot:
            self._clock.forget()
            self._ask_at = 0.0
        self._boot, self._seq = grant.boot, grant.seq
        self._clock.observe(grant.now_us, now)
        here = self._clock.local_s(grant.now_us, now)
        self._sync_at = math.inf
        self.guard_s = grant.guard_us / 1e6
        if grant.pause_us:
            self._told_pause = max(self._told_pause, here + grant.pause_us / 1e6)
            self._dispatcher.pause(here + grant.pause_us / 1e6, grant.pause_reason)
        if costs:
            self.by = grant.by
            self._ask_at = here + grant.again_us / 1e6
        if grant.starts_us:
            self.granted += len(grant.starts_us)
            self._grants.append((now, len(grant.starts_us)))
            slots = [Slot(here + start / 1e6, cost) for start, cost in zip(grant.starts_us, costs, strict=False)]
            self._latest_s = slots[-1].start
            self._dispatcher.add(slots)

    def _next_at(self) -> float:
        at = min(self._settle_at, self._sync_at)
        if self._dispatcher.uncovered() > 0:
            at = min(at, max(self._ask_at, self._exchanged_at + EXCHANGE_GAP_S))
        return max(at, self._not_before)

    def _back_off(self, error: RedisUnavailableError) -> None:
        if self._backoff_s == 0.0:
            log.warning("limiter: no new slots until Redis is back: %s", error)
        self._backoff_s = min(LONGEST_BACKOFF_S, max(FIRST_BACKOFF_S, 2 * self._backoff_s))
        self._not_before = monotonic() + self._backoff_s
        self._sync_at = 0.0
