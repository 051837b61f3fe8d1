"""Slots, the calls that wait for them, and the meeting of the two at the right moment."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from itertools import islice
from time import monotonic

from msgspec import Struct

from callmill.limits.permits import Permits
from callmill.limits.timing import Timing


class Slot(Struct):
    """The right to start one call.

    Attributes:
        start: Not before this time of ``time.monotonic()``.
        tokens: What is reserved for the call on limits that count tokens.
        open: False once it is settled.
    """

    start: float
    tokens: int = 0
    open: bool = True


class Dispatcher:
    """Hands slots that are due to the calls that wait, first come first served, with one timer for all.

    Slots are not tied to calls: the call that waits longest takes the next slot, and what it costs more or less than
    the slot reserved is settled. A slot later than its validity is dropped, never fired in a bunch with others.
    """

    def __init__(self, timing: Timing, permits: Permits, *, validity_s: float, paced: bool) -> None:
        self._timing = timing
        self._permits = permits
        self._validity_s = validity_s
        self._paced = paced
        self._queue: OrderedDict[asyncio.Future[Slot], int] = OrderedDict()
        self._held: deque[Slot] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self.on_settle: Callable[[Slot, int], None] = _settle_nothing
        self.on_void: Callable[[Slot], None] = _void_nothing
        self.on_need: Callable[[], None] = _nothing
        self.backlog: Callable[[], int] = _none
        self.paused_until = 0.0
        self.pause_reason: str | None = None
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
        if not self._paced:
            return 0
        self._drop_late(monotonic())
        return min(len(self._queue) + self.backlog(), max(0, self._permits.free)) - len(self._held)

    def costs(self, count: int) -> list[int]:
        """The tokens of the next ``count`` calls that no held slot covers."""
        held = len(self._held)
        return list(islice(self._queue.values(), held, held + count))

    def add(self, slots: Iterable[Slot]) -> None:
        """Take granted slots, in order of their starts."""
        self._held.extend(slots)
        self._drop_paused()
        self.dispatch()

    def enqueue(self, tokens: int, *, first: bool = False) -> asyncio.Future[Slot]:
        """Let a call wait; ``first``: before all others, because it lost its slot."""
        future: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        self._queue[future] = tokens
        if first:
            self._queue.move_to_end(future, last=False)
        if self._timer is None:
            self.dispatch()
        return future

    def forget(self, future: asyncio.Future[Slot]) -> None:
        """The call gave up: whatever it had is there for the others."""
        self._queue.pop(future, None)
        if future.done() and not future.cancelled():
            if self._paced:
                self._held.appendleft(future.result())
            self._permits.give()
            self.dispatch()

    def take(self, tokens: int) -> Slot | None:
        """A slot that is due now, unless another call waits for it."""
        if self._queue or self._permits.free <= 0:
            return None
        now = monotonic()
        slot = self._due(now)
        if slot is None:
            return None
        self._permits.take()
        self._bind(slot, tokens)
        self._count(slot, now)
        self.on_need()
        return slot

    def accept(self, slot: Slot) -> bool:
        """Whether the slot still holds now that its call runs; if not, slot and permit are gone."""
        now = monotonic()
        if slot.start >= self.paused_until and (now - slot.start <= self._validity_s or not self._paced):
            self._count(slot, now)
            return True
        self._permits.give()
        self._waste(slot, missed=slot.start >= self.paused_until)
        return False

    def pause(self, until: float, reason: str) -> None:
        """Start nothing before ``until``; slots before it are void."""
        if until > self.paused_until:
            self.paused_until, self.pause_reason = until, reason
            self._drop_paused()
            self.dispatch()
            self.on_need()

    def dispatch(self) -> None:
        """Wake the calls whose slots are due and set the timer for the next."""
        now = monotonic()
        while self._queue and self._permits.free > 0:
            slot = self._due(now)
            if slot is None:
                break
            future, tokens = self._queue.popitem(last=False)
            if future.done():  # cancelled just now
                self._held.appendleft(slot)
                continue
            self._permits.take()
            self._bind(slot, tokens)
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

    def _due(self, now: float) -> Slot | None:
        if not self._paced:
            return Slot(now) if now >= self.paused_until else None
        self._drop_late(now)
        return self._held.popleft() if self._held and self._held[0].start <= now else None

    def _drop_late(self, now: float) -> None:
        before = len(self._held)
        while self._held and self._held[0].start < now - self._validity_s:
            self._waste(self._held.popleft(), missed=bool(self._queue))
        if len(self._held) < before:
            self.on_need()

    def _drop_paused(self) -> None:
        while self._held and self._held[0].start < self.paused_until:
            self._waste(self._held.popleft(), missed=False)

    def _bind(self, slot: Slot, tokens: int) -> None:
        if tokens != slot.tokens:
            self.on_settle(slot, tokens - slot.tokens)
            slot.tokens = tokens

    def _count(self, slot: Slot, now: float) -> None:
        self.fired += 1
        if self._paced:
            self._timing.fired(now - slot.start)

    def _waste(self, slot: Slot, *, missed: bool) -> None:
        self.missed += missed
        self.on_void(slot)

    def _arm(self, now: float) -> None:
        at = self._next_due() if self._queue and self._permits.free > 0 else math.inf
        if at == self._timer_at and self._timer is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = None, at
        if at < math.inf:
            # uvloop rounds to milliseconds and counts from a cached time: a timer may come early, then it is set again.
            delay_s = max(1, math.ceil((at - now) * 1000)) / 1000
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._on_timer)

    def _next_due(self) -> float:
        if not self._paced:
            return self.paused_until
        return self._held[0].start if self._held else math.inf

    def _on_timer(self) -> None:
        self._timer, self._timer_at = None, math.inf
        self.dispatch()


def _settle_nothing(_slot: Slot, _tokens: int) -> None:
    return


def _void_nothing(_slot: Slot) -> None:
    return


def _nothing() -> None:
    return


def _none() -> int:
    return 0
