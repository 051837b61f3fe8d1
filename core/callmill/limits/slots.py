"""Slots, and the stock of them that one group of calls holds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from operator import attrgetter
from time import monotonic
from typing import TYPE_CHECKING

from msgspec import Struct

from callmill.limits.cost import ONE_REQUEST, Cost
from callmill.limits.permits import PermitSet
from callmill.limits.settlements import Settlements
from callmill.limits.timing import Timing

if TYPE_CHECKING:
    from callmill.limits.group import Group


class Slot(Struct):
    """The right to start one call.

    Attributes:
        start: Not before this time of ``time.monotonic()``.
        cost: What is reserved for the call.
        key: Which of the API's credentials it is for, from 0.
        open: False once it is settled.
        group: Whose calls it is for; None for a slot that no limiter gave.
        permits: What the call took of concurrency limits: given back there, whatever limits hold by then.
        refused: Whether the API refused the call because of its limits.
    """

    start: float
    cost: Cost = ONE_REQUEST
    key: int = 0
    open: bool = True
    group: Group | None = None
    permits: PermitSet | None = None
    refused: bool = False

    def charge(self, cost: Cost) -> None:
        """Reserve this for the call that takes the slot; what it costs more or less than before is settled."""
        if cost != self.cost and self.group is not None:
            self.group.settlements.settle(self.key, self.start, self.cost, cost)
            self.cost = cost

    def give_permits(self) -> None:
        """The call is over, or never started; repeats are ignored."""
        permits, self.permits = self.permits, None
        if permits is not None:
            permits.give(self.key)

    @property
    def tokens(self) -> int:
        """Tokens reserved for the call."""
        return self.cost.tokens


_start = attrgetter("start")

FRESH, PLENTY = 0.75, 8
"""Where so many more slots are due, a call takes none that is older than this part of its validity: until the event
loop runs the call, it might be too late."""


class Stock:
    """The slots that one group of calls was granted and has not used yet, in the order of their starts.

    A slot that is later than its validity is dropped, never used in a bunch with others.

    Attributes:
        missed: Slots dropped because this process was late, though a call waited.
    """

    def __init__(self, timing: Timing, settlements: Settlements, waits: Callable[[], bool], *, keys: int) -> None:
        self.missed = 0
        self._timing = timing
        self._settlements = settlements
        self._waits = waits
        self._slots: deque[Slot] = deque()
        self._of_key = [0] * keys

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def next_start(self) -> float | None:
        """When the next one is due."""
        return self._slots[0].start if self._slots else None

    def gathered_start(self, calls: int) -> float | None:
        """When so many calls may start, but for those whose slots come much later than the first one's."""
        if not self._slots:
            return None
        start = self._slots[0].start
        latest = start + self._timing.gather_s
        for slot in islice(self._slots, 1, calls):
            if slot.start > latest:
                break
            start = slot.start
        return start

    @property
    def last_start(self) -> float | None:
        """When the last one is due."""
        return self._slots[-1].start if self._slots else None

    def of_key(self, key: int) -> int:
        """How many there are of a credential."""
        return self._of_key[key]

    def add(self, slots: Sequence[Slot]) -> None:
        """Take granted slots, in order of their starts; a credential that came back may start some before held ones."""
        if self._slots and slots[0].start < self._slots[-1].start:
            self._slots = deque(sorted([*self._slots, *slots], key=_start))
        else:
            self._slots.extend(slots)
        for slot in slots:
            self._of_key[slot.key] += 1

    def put_back(self, slot: Slot) -> None:
        """Take a slot back that no call took."""
        self._slots.appendleft(slot)
        self._of_key[slot.key] += 1

    def take_due(self, now: float) -> Slot | None:
        """The next slot, if it is due now."""
        slots, validity_s = self._slots, self._timing.validity_s
        if not slots or slots[0].start > now:
            return None
        if slots[0].start < now - validity_s * FRESH and len(slots) > PLENTY and slots[PLENTY].start <= now:
            self._drop_older(now, validity_s * FRESH)
        elif slots[0].start < now - validity_s:
            self.drop_late(now)
        else:
            return self._pop()
        return self.take_due(now)

    def drop_late(self, now: float) -> None:
        """Drop what is too late to be used."""
        self._drop_older(now, self._timing.validity_s)

    def _drop_older(self, now: float, age_s: float) -> None:
        latest = now - age_s
        while self._slots and self._slots[0].start < latest:
            slot, missed = self._pop(), self._waits()
            if missed:
                self._timing.dropped(now - slot.start)
            self.waste(slot, missed=missed)

    def drop_before(self, start: float) -> None:
        """Drop what is due earlier than this: it falls into a pause."""
        while self._slots and self._slots[0].start < start:
            self.waste(self._pop(), missed=False)

    def drop_all(self) -> None:
        """Drop everything: what was granted is void."""
        while self._slots:
            self.waste(self._pop(), missed=False)

    def waste(self, slot: Slot, *, missed: bool) -> None:
        """Settle a slot that no call takes."""
        self.missed += missed
        self._settlements.void(slot.key, slot.start, slot.cost)

    def is_late(self, slot: Slot) -> bool:
        """Whether a slot whose call starts now is too late; if not, its lateness is noted."""
        late_s = monotonic() - slot.start
        if late_s <= self._timing.validity_s:
            self._timing.fired(late_s)
            return False
        self._timing.dropped(late_s)
        return True

    def _pop(self) -> Slot:
        slot = self._slots.popleft()
        self._of_key[slot.key] -= 1
        return slot
