"""Slots, the calls that wait for them, and the meeting of the two at the right moment."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from itertools import islice
from time import monotonic
from typing import Protocol

from msgspec import Struct

from callmill.limits.cost import ONE_REQUEST, Cost
from callmill.limits.key_ring import KeyRing
from callmill.limits.permits import PermitSet
from callmill.limits.timing import Timing


class Slot(Struct):
    """The right to start one call.

    Attributes:
        start: Not before this time of ``time.monotonic()``.
        cost: What is reserved for the call.
        key: Which of the API's credentials it is for, from 0.
        open: False once it is settled.
        line: Where it comes from.
        permits: What the call took of concurrency limits: given back there, whatever limits hold by then.
        refused: Whether the API refused the call because of its limits.
    """

    start: float
    cost: Cost = ONE_REQUEST
    key: int = 0
    open: bool = True
    line: Dispatcher | None = None
    permits: PermitSet | None = None
    refused: bool = False

    def give_permits(self) -> None:
        """The call is over, or never started; repeats are ignored."""
        permits, self.permits = self.permits, None
        if permits is not None:
            permits.give(self.key)

    @property
    def tokens(self) -> int:
        """Tokens reserved for the call."""
        return self.cost.tokens


class Accounts(Protocol):
    """Who keeps what slots reserve in step with what calls use."""

    def rebind(self, slot: Slot, cost: Cost) -> None:
        """A call of this cost takes the slot."""
        ...

    def void(self, slot: Slot) -> None:
        """No call takes the slot."""
        ...

    def settle(self, slot: Slot, used: Cost) -> None:
        """The slot's call is over, and cost this."""
        ...

    def demand(self) -> None:
        """Slots may be needed."""
        ...


class Dispatcher:
    """Hands slots that are due to the calls that wait, first come first served, with one timer for all.

    Slots are not tied to calls: the call that waits longest takes the next slot, and what it costs more or less than
    the slot reserved is settled. But no call takes a slot of a smaller weight, for requests cannot be settled: those of
    a moment are made by then. A slot later than its validity is dropped, never fired in a bunch with others.
    """

    def __init__(self, timing: Timing, permits: PermitSet, keys: KeyRing, *, paced: bool) -> None:
        self.permits = permits
        self.paced = paced
        self._timing = timing
        self._keys = keys
        self._queue: OrderedDict[asyncio.Future[Slot], Cost] = OrderedDict()
        self._held: deque[Slot] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self.accounts: Accounts = _NoAccounts()
        self.backlog: Callable[[], int] = _none
        self.paused_until = 0.0
        self.pause_reason: str | None = None
        self._weighted = False
        self.served = 0.0
        self.fired = 0
        self.missed = 0

    @property
    def waiting(self) -> int:
        """Calls that wait now."""
        return len(self._queue)

    @property
    def held(self) -> int:
        """Slots granted and not yet due."""
        return len(self._held)

    @property
    def next_start(self) -> float | None:
        """When the next held slot is due."""
        return self._held[0].start if self._held else None

    def uncovered(self) -> int:
        """Calls that wait, could have a permit, and have no slot yet."""
        if not self.paced:
            return 0
        self._drop_late(monotonic())
        startable = max(0, self._free()) - len(self._held)
        if not self._weighted:
            return min(len(self._queue) + self.backlog() - len(self._held), startable)
        bare, spare = self._matched()
        return min(len(bare) + max(0, self.backlog() - spare), startable)

    def uncovered_of(self, key: int) -> int:
        """Calls that could have a permit of this credential and have no slot yet."""
        if self._keys.is_full(key):
            return 0
        return max(0, self.permits.free_of(key) - sum(slot.key == key for slot in self._held))

    def costs(self, count: int) -> list[Cost]:
        """The costs of the next ``count`` calls that no held slot covers; one request each for those that will come."""
        held = len(self._held)
        known = self._matched()[0][:count] if self._weighted else list(islice(self._queue.values(), held, held + count))
        return known + [ONE_REQUEST] * (count - len(known))

    def add(self, slots: Sequence[Slot]) -> None:
        """Take granted slots, in order of their starts; a credential that came back may start some before held ones."""
        latest = self._held[-1].start if self._held else -math.inf
        self._held.extend(slots)
        if len(self._held) > 1 and any(slot.start < latest for slot in slots):
            self._held = deque(sorted(self._held, key=_start))
        self._drop_paused()
        self.dispatch()

    def enqueue(self, cost: Cost, *, first: bool = False) -> asyncio.Future[Slot]:
        """Let a call wait; ``first``: before all others, because it lost its slot."""
        future: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        self._weighted |= cost.weight > 1
        self._put(future, cost, first=first)
        if self._timer is None:
            self.dispatch()
        return future

    def forget(self, future: asyncio.Future[Slot]) -> None:
        """The call gave up: whatever it had is there for the others."""
        self._queue.pop(future, None)
        if future.done() and not future.cancelled():
            slot = future.result()
            if self.paced:
                self._held.appendleft(slot)
            slot.give_permits()
            self.dispatch()

    def take(self, cost: Cost) -> Slot | None:
        """A slot that is due now, unless another call waits for it."""
        if self._queue or self.permits.free <= 0:
            return None
        now = monotonic()
        slot = self._due(now)
        if slot is None:
            return None
        if slot.cost.weight < cost.weight and self.paced:
            self._held.appendleft(slot)
            return None
        self._bind(slot, cost)
        self._count(slot, now)
        self.accounts.demand()
        return slot

    def accept(self, slot: Slot) -> bool:
        """Whether the slot still holds now that its call runs; if not, slot and permit are gone."""
        now = monotonic()
        held_back = slot.start < self.paused_until or not self._may_use(slot.key, now)
        if not held_back and (now - slot.start <= self._timing.validity_s or not self.paced):
            self._count(slot, now)
            return True
        slot.give_permits()
        if not held_back:
            self._timing.dropped(now - slot.start)
        self._waste(slot, missed=not held_back)
        return False

    def pause(self, until: float, reason: str) -> None:
        """Start nothing before ``until``; slots before it are void."""
        if until > self.paused_until:
            self.paused_until, self.pause_reason = until, reason
            self._drop_paused()
            self.dispatch()
            self.accounts.demand()

    def drop_held(self) -> None:
        """What is granted is void."""
        while self._held:
            self._waste(self._held.popleft(), missed=False)

    def resume(self) -> None:
        """Start calls again before the end of the pause."""
        self.paused_until = 0.0
        self.dispatch()
        self.accounts.demand()

    def dispatch(self) -> None:
        """Wake the calls whose slots are due and set the timer for the next."""
        now = monotonic()
        while self._queue and self.permits.free > 0:
            slot = self._due(now)
            if slot is None:
                break
            future, cost = self._queue.popitem(last=False)
            if future.done():  # cancelled just now
                if self.paced:
                    self._held.appendleft(slot)
                continue
            if cost.weight != slot.cost.weight and self.paced:
                self._put(future, cost, first=True)
                fitting = self._fitting(slot)
                if fitting is None:
                    self._waste(slot, missed=False)
                    self.accounts.demand()
                    continue
                future, cost = fitting, self._queue.pop(fitting)
            self._bind(slot, cost)
            self.served += 1
            future.set_result(slot)
        self._arm(now)

    def close(self) -> None:
        """Cancel whatever waits; what is held is void, and no more is wanted."""
        self.backlog = _none
        if self._timer is not None:
            self._timer.cancel()
        while self._queue:
            self._queue.popitem()[0].cancel()
        while self._held:
            self._waste(self._held.popleft(), missed=False)

    def _put(self, future: asyncio.Future[Slot], cost: Cost, *, first: bool) -> None:
        self._queue[future] = cost
        if first:
            self._queue.move_to_end(future, last=False)

    def _fitting(self, slot: Slot) -> asyncio.Future[Slot] | None:
        """The first call that waits of the slot's weight, else the first of a smaller one."""
        lighter = None
        for future, cost in self._queue.items():
            if not future.done():
                if cost.weight == slot.cost.weight:
                    return future
                if lighter is None and cost.weight < slot.cost.weight:
                    lighter = future
        return lighter

    def _matched(self) -> tuple[list[Cost], int]:
        """The costs of calls that wait and have no slot of their weight, and how many slots of one request are left."""
        slots = Counter(slot.cost.weight for slot in self._held)
        bare = []
        for cost in self._queue.values():
            if slots[cost.weight] > 0:
                slots[cost.weight] -= 1
            else:
                bare.append(cost)
        return bare, slots[1]

    def _due(self, now: float) -> Slot | None:
        if not self.paced:
            key = self._keys.pick(self.permits, now) if now >= self.paused_until else None
            return None if key is None else Slot(now, key=key, line=self)
        self._drop_late(now)
        while self._held and self._held[0].start <= now:
            slot = self._held.popleft()
            if self._may_use(slot.key, now) and self.permits.free_of(slot.key) > 0:
                return slot
            self._waste(slot, missed=False)
            self.accounts.demand()  # another credential may have a slot for the call that waits
        return None

    def _may_use(self, key: int, now: float) -> bool:
        return not self._keys.is_full(key) and self._keys.aside(key, now) is None

    def _free(self) -> int:
        """The permits with which a call may start now, but for those of credentials that are full."""
        keys, permits = self._keys, self.permits
        if not keys.any_full:
            return permits.free
        return min(permits.free, sum(permits.free_of(key) for key in range(len(keys)) if not keys.is_full(key)))

    def _drop_late(self, now: float) -> None:
        before, validity_s = len(self._held), self._timing.validity_s
        while self._held and self._held[0].start < now - validity_s:
            slot = self._held.popleft()
            if self._queue:
                self._timing.dropped(now - slot.start)
            self._waste(slot, missed=bool(self._queue))
        if len(self._held) < before:
            self.accounts.demand()

    def _drop_paused(self) -> None:
        while self._held and self._held[0].start < self.paused_until:
            self._waste(self._held.popleft(), missed=False)

    def _bind(self, slot: Slot, cost: Cost) -> None:
        self.permits.take(slot.key)
        slot.permits = self.permits
        if cost is not slot.cost and cost != slot.cost:
            self.accounts.rebind(slot, cost)
            slot.cost = cost

    def _count(self, slot: Slot, now: float) -> None:
        self.fired += 1
        if self.paced:
            self._timing.fired(now - slot.start)

    def _waste(self, slot: Slot, *, missed: bool) -> None:
        self.missed += missed
        self.accounts.void(slot)

    def _arm(self, now: float) -> None:
        at = self._next_due(now) if self._queue and self.permits.free > 0 else math.inf
        if at == self._timer_at and self._timer is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = None, at
        if at < math.inf:
            # uvloop rounds to milliseconds and counts from a cached time: a timer may come early, then it is set again.
            delay_s = max(1, math.ceil((at - now) * 1000)) / 1000
            self._timer = asyncio.get_running_loop().call_later(min(delay_s, _LONGEST_SLEEP_S), self._on_timer)

    def _next_due(self, now: float) -> float:
        if not self.paced:
            return max(self.paused_until, self._keys.usable_from(now))
        return self._held[0].start if self._held else math.inf

    def _on_timer(self) -> None:
        self._timer, self._timer_at = None, math.inf
        self.dispatch()


_LONGEST_SLEEP_S = 3600.0


class _NoAccounts:
    def rebind(self, slot: Slot, cost: Cost) -> None: ...

    def void(self, slot: Slot) -> None: ...

    def settle(self, slot: Slot, used: Cost) -> None: ...

    def demand(self) -> None: ...


def _start(slot: Slot) -> float:
    return slot.start


def _none() -> int:
    return 0
