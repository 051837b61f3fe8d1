"""Group: the calls of one class of traffic, one model and one weight, with the limits that hold for them."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from time import monotonic

from callmill.limits.cost import ONE_REQUEST, Cost
from callmill.limits.key_ring import KeyRing
from callmill.limits.layout import Layout
from callmill.limits.pace import Pace
from callmill.limits.permits import PermitSet
from callmill.limits.settlements import Settlements
from callmill.limits.slots import Slot, Stock
from callmill.limits.timing import Timing
from callmill.limits.turns import LEAVES_FREE, Turn
from callmill.limits.waiting import WaitingCalls


class Start(Enum):
    """What came of starting a group's next call."""

    DONE = auto()
    NOBODY_WAITS = auto()
    NOT_DUE = auto()
    NO_PERMIT = auto()
    NO_PERMIT_OF_MODEL = auto()
    NO_PLACE = auto()


class Group:
    """What waits, what is granted, and how the two meet. Times are those of ``time.monotonic()``.

    Attributes:
        layout: The limits that hold for its calls; ``paced``: whether they choose the starts of these.
        weight: How many requests each of its calls counts as.
        calls: Those that wait.
        turn: When it is its class's turn, where slots of several groups are due.
        stock: Its slots.
        settlements: What is owed for its slots.
        paused_until: No call starts before.
        ran_dry: Whether a call waited while no slot was held, since ``Refill`` looked last.
        fired: Calls started, and ``pace``, how many a second lately.
        backlog: Calls that are expected soon beyond those that wait; see ``Limiter.expect``.
    """

    def __init__(
        self,
        layout: Layout,
        calls: WaitingCalls,
        permits: PermitSet,
        *,
        weight: int,
        turn: Turn,
        ring: KeyRing,
        timing: Timing,
    ) -> None:
        self.layout, self.paced = layout, bool(layout.nodes)
        self.weight = weight
        self.calls = calls
        self.turn = turn
        self.settlements = Settlements(layout)
        self.stock = Stock(timing, self.settlements, lambda: calls.wanting > 0, keys=len(ring))
        self.paused_until = 0.0
        self.ran_dry = False
        self.fired = 0
        self.pace = Pace()
        self.backlog: Callable[[], int] = _none
        self._permits = permits
        self._ring = ring
        self._cost = Cost(weight=weight) if weight > 1 else ONE_REQUEST

    def use(self, layout: Layout, permits: PermitSet) -> None:
        """Let other limits hold from now on; what waits goes on waiting, what is granted stays granted."""
        self.layout, self.paced, self._permits = layout, bool(layout.nodes), permits
        self.settlements.use(layout)

    def start_next(self, now: float, places: int) -> Start:
        """Start the next call that waits, if it has a due slot, permits, and one of the places that are left here."""
        if self.calls.wanting <= 0:
            return Start.NOBODY_WAITS
        if self.turn.in_flight >= LEAVES_FREE * places:
            return Start.NO_PLACE
        if self._permits.free <= 0:
            return Start.NO_PERMIT_OF_MODEL if self._permits.only_model_lacks else Start.NO_PLACE
        slot = self._due(now)
        if slot is None:
            self.ran_dry |= self.paced and not len(self.stock)
            return Start.NOT_DUE if self.next_due(now) > now else Start.NO_PLACE
        self._take_permits(slot)
        self.fired += 1
        if not self.calls.start(slot):
            self.give_back(slot)
            return Start.NOBODY_WAITS
        return Start.DONE

    def take_now(self, cost: Cost) -> Slot | None:
        """A slot that is due now, unless a call waits for it."""
        if self.calls.wanting > 0 or self._permits.free <= 0:
            return None
        slot = self._due(monotonic())
        if slot is None:
            return None
        self.fired += 1
        if not self.accept(slot):
            return None
        self._take_permits(slot)
        slot.charge(cost)
        return slot

    def next_due(self, now: float) -> float:
        """When the next call may start, as far as is known here."""
        if self.paced:
            start = self.stock.gathered_start(self.calls.wanting)
            return float("inf") if start is None else start
        return max(self.paused_until, self._ring.usable_from(now))

    def accept(self, slot: Slot) -> bool:
        """Whether a slot still holds now that its call really starts; if not, slot and permits are gone."""
        if slot.start < self.paused_until or not (self._ring.all_usable or self._ring.is_usable(slot.key)):
            missed = False
        elif not self.paced or not self.stock.is_late(slot):
            return True
        else:
            missed = True
        slot.open = False
        self.fired -= 1
        slot.give_permits()
        self.stock.waste(slot, missed=missed)
        return False

    def give_back(self, slot: Slot) -> None:
        """Take a slot back whose call did not start: others may use it."""
        self.fired -= 1
        slot.give_permits()
        if self.paced:
            self.stock.put_back(slot)

    def pause(self, until: float) -> None:
        """Start nothing before ``until``; slots before it are void."""
        self.paused_until = until
        self.stock.drop_before(until)

    def take_ran_dry(self) -> bool:
        """Return ``ran_dry``, and begin anew."""
        ran_dry, self.ran_dry = self.ran_dry, False
        return ran_dry

    def lacks(self) -> int:
        """Slots of use beyond those that are held: for calls that would start, and those that are expected."""
        if not self.paced:
            return 0
        self.stock.drop_late(monotonic())
        return min(self.calls.wanting + self.backlog(), self._usable_permits()) - len(self.stock)

    def lacks_of(self, key: int) -> int:
        """The same for one credential, as far as its permits allow."""
        return 0 if self._ring.is_full(key) else max(0, self._permits.free_of(key) - self.stock.of_key(key))

    def costs(self, count: int) -> list[Cost]:
        """What to reserve for the next calls that no held slot covers; one request each for those that will come."""
        known = self.calls.costs(len(self.stock), count) if self.layout.counts_tokens else []
        return known + [self._cost] * (count - len(known))

    def _due(self, now: float) -> Slot | None:
        if not self.paced:
            key = self._ring.pick(self._permits, now) if now >= self.paused_until else None
            return None if key is None else Slot(now, self._cost, key, group=self)
        while (slot := self.stock.take_due(now)) is not None:
            if self._may_use(slot.key) and self._permits.free_of(slot.key) > 0:
                return slot
            self.stock.waste(slot, missed=False)  # another credential may have a slot for the call that waits
        return None

    def _take_permits(self, slot: Slot) -> None:
        self._permits.take(slot.key)
        slot.permits = self._permits

    def _may_use(self, key: int) -> bool:
        ring = self._ring
        return ring.all_usable or (ring.is_usable(key) and not ring.is_full(key))

    def _usable_permits(self) -> int:
        """The permits with which a call may start now, but for those of credentials that are full."""
        ring, permits = self._ring, self._permits
        if not ring.any_full:
            return permits.free
        return min(permits.free, sum(permits.free_of(key) for key in range(len(ring)) if not ring.is_full(key)))


def _none() -> int:
    return 0
