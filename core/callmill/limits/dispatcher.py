"""Dispatcher: when slots are due, the next calls take them. One timer for all calls of an API in a process."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from operator import attrgetter
from time import monotonic

from callmill.limits.group import Group, Start
from callmill.limits.turns import Turn
from callmill.limits.waiting import Caller

GATHERED_S = 0.001
"""Places that come free so soon after the last starts are filled together."""

MOST_AT_ONCE = 32
"""Calls that start before the event loop runs them: the last of more would begin when its slot is no longer good."""

_LONGEST_SLEEP_S = 3600.0
_virtual_time = attrgetter("virtual_time")


class Dispatcher:
    """Starts calls. No call waits for a slot of its own: calls lie in their queues until a slot that is due takes them.

    Args:
        caller: Who makes the calls.
        on_used: Called with a group whose slots may have been used up.
        on_no_permit: Called with a group whose calls lack permits. If those are its model's own, it is left alone until
            it is woken.
    """

    def __init__(
        self, caller: Caller, *, on_used: Callable[[Group], None], on_no_permit: Callable[[Group], None]
    ) -> None:
        self._caller = caller
        self._on_used = on_used
        self._on_no_permit = on_no_permit
        self._ready: dict[Turn, dict[Group, None]] = {}
        self._due_at: dict[Group, float] = {}
        self._known: set[Group] = set()
        self._turns: Counter[Turn] = Counter()
        self._agenda: list[tuple[float, int, Group]] = []
        self._numbers = count()
        self._started_s = 0.0
        self._is_gathering = self._is_short = self._is_at_it = self._once_more = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    def wake(self, group: Group) -> None:
        """Start calls of a group that may be able to start now: calls came, or slots, or a pause is over."""
        self.make_ready(group)
        self.dispatch()

    def make_ready(self, group: Group) -> None:
        """The same, with the next ``dispatch``, or the next call that is over."""
        if group not in self._known:
            if group.turn not in self._turns:
                group.turn.join(self._turns)
            self._known.add(group)
            self._turns[group.turn] += 1
        self._enter_ready(group)
        self._is_short = True

    def knows(self, group: Group) -> bool:
        """Say whether calls of a group start by themselves when its slots are due, and there is a place."""
        return group in self._known

    def freed(self, *, last: bool) -> None:
        """Take note that a call is over: another one may have waited for its place; ``last``: no other is under way.

        Where many end within a millisecond, those that take their places start together: each start wakes the
        transport's thread, and that costs more than the start.
        """
        if not self._is_short or self._is_gathering:
            return
        if last or monotonic() - self._started_s >= GATHERED_S:
            self.dispatch()
        else:
            self._is_gathering = True
            asyncio.get_running_loop().call_later(GATHERED_S, self._gathered)

    def dispatch(self) -> None:
        """Start every call that may start now, and set the timer for the next one."""
        if self._is_at_it:  # a call that starts may change what may start
            self._once_more = True
            return
        self._is_at_it = self._once_more = True
        try:
            while self._once_more:
                self._once_more = False
                self._start_all(monotonic())
        finally:
            self._is_at_it = False

    def _start_all(self, now: float) -> None:
        self._started_s = now
        self._rise(now)
        lacking: list[Group] = []
        without_place: list[Turn] = []
        room, places = self._caller.room(), self._caller.places()
        enough = max(0, room - MOST_AT_ONCE)
        while room > enough and (group := self._next(without_place)) is not None:
            came = group.start_next(now, places)
            while came is Start.DONE:
                group.turn.served()
                room -= 1
                places -= 1
                if room <= enough or len(self._ready) > 1:
                    break  # it may be another one's turn
                came = group.start_next(now, places)
            else:
                if came is Start.NO_PLACE:
                    without_place.append(group.turn)  # nor is there one for other calls of its class
                    self._on_no_permit(group)
                else:
                    self._leave_alone(group, came, now, lacking)
                self._on_used(group)  # without permits it asked for no slots
        if 0 < room <= enough and not self._is_gathering and self._next(without_place) is not None:
            self._is_gathering = True
            asyncio.get_running_loop().call_soon(self._gathered)
        self._is_short = bool(self._ready) or bool(lacking)
        for group in lacking:  # another call that is over may have what they lack
            self._enter_ready(group)
            self._on_no_permit(group)
        self._arm(now)

    def _next(self, without_place: list[Turn]) -> Group | None:
        """A group of the class whose turn it is, of those for which there may be a place."""
        turns = self._ready
        if without_place:
            if len(turns) == 1:
                return None
            turns = {turn: groups for turn, groups in turns.items() if turn not in without_place}
        if not turns:
            return None
        turn = min(turns, key=_virtual_time) if len(turns) > 1 else next(iter(turns))
        return next(iter(turns[turn]))

    def _leave_alone(self, group: Group, came: Start, now: float, lacking: list[Group]) -> None:
        self._leave_ready(group)
        if came is Start.NOT_DUE:
            self._rest(group, group.next_due(now))
        elif came is Start.NOBODY_WAITS:
            self.forget(group)
        elif came is Start.NO_PERMIT:
            lacking.append(group)
        else:
            self.forget(group)
            self._on_no_permit(group)

    def forget(self, group: Group) -> None:
        """Leave a group alone until it is woken."""
        if group in self._known:
            self._known.remove(group)
            self._turns[group.turn] -= 1
            if not self._turns[group.turn]:
                del self._turns[group.turn]
        self._leave_ready(group)
        self._due_at.pop(group, None)

    def close(self) -> None:
        """Start no more calls."""
        self._ready.clear()
        self._due_at.clear()
        self._known.clear()
        self._turns.clear()
        self._agenda.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _enter_ready(self, group: Group) -> None:
        self._ready.setdefault(group.turn, {})[group] = None

    def _leave_ready(self, group: Group) -> None:
        ready = self._ready.get(group.turn)
        if ready is not None:
            ready.pop(group, None)
            if not ready:
                del self._ready[group.turn]

    def _rise(self, now: float) -> None:
        while self._agenda and self._agenda[0][0] <= now:
            at, _, group = heappop(self._agenda)
            if self._due_at.get(group) == at:
                del self._due_at[group]
                self._enter_ready(group)

    def _rest(self, group: Group, at: float) -> None:
        """Leave a group alone until its next slot is due."""
        if self._due_at.get(group) != at:
            self._due_at[group] = at
            if at < math.inf:
                heappush(self._agenda, (at, next(self._numbers), group))

    def _arm(self, now: float) -> None:
        at = self._agenda[0][0] if self._agenda else math.inf
        if at == self._timer_at and self._timer is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = None, at
        if at < math.inf:
            # The loop's clock is time.monotonic(), which uvloop keeps in whole milliseconds: rounded up, or the timer
            # would come early and be set again.
            when = math.ceil(min(at, now + _LONGEST_SLEEP_S) * 1000) / 1000
            self._timer = asyncio.get_running_loop().call_at(when, self._on_timer)

    def _gathered(self) -> None:
        self._is_gathering = False
        self.dispatch()

    def _on_timer(self) -> None:
        self._timer = None
        self.dispatch()
