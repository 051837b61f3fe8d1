"""What this process measures of its own punctuality, and the guard and lead that follow."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque

REFRESH_S = 1.0
UNMEASURED_S = 0.001
UNMEASURED_LATENESS_S = 0.040
ENOUGH_SAMPLES = (10, 100)
ENOUGH_S = 20.0
"""A process that has just started is late in ways it cannot know yet: first connections, first runs of its code. It
knows after many calls, or after some calls and a while."""

ENOUGH_TO_WEIGH = 20
"""Slots that show whether too many are dropped; at low rates a hundred take minutes."""

LONGEST_PART_S = 0.020
LEAD_FLOOR_S, SHORTEST_LEAD_S = 0.002, 0.0005
LONGEST_LEAD_S = 0.100

LONGEST_GATHER_S, GATHER_OF_VALIDITY, TIMER_STEP_S = 0.005, 0.6, 0.001
"""How long slots wait for others: the rest of their validity is left for what makes a process late but its timers."""

VALIDITY_FACTORS = (1, 2, 4)
WORTH_IT = 0.003
"""Part of the limit that another validity must save to be taken."""


class Timing:
    """Round trips to Redis and lateness of slots.

    guard = slot validity + lateness (99.9 %) + spread of the round trips (95 % less the best) + best round trip.
    The validity covers how late a slot may be fired; the lateness stands for the way from the slot to the socket;
    the spread for the jitter of a network; the best round trip bounds the error of the clock map.

    Where the guard is measured, a host that is often late gets a longer validity: what it costs in guard is weighed
    against the slots that it saves.

    Args:
        validity_s: How late a slot may be fired on a punctual host.
        guard_s: The guard where it is not measured.
        window_s: The shortest window that calls are paced by.
    """

    def __init__(self, validity_s: float, guard_s: float | None, *, window_s: float = 1.0) -> None:
        self._round_trips: deque[float] = deque(maxlen=256)
        self._lateness: deque[float] = deque(maxlen=1024)
        self._lateness_of_all: deque[float] = deque(maxlen=1024)
        self._measured_s = float("-inf")
        self._force_s = 0.0
        self._known_from_s: float | None = None
        self.lead_s = LEAD_FLOOR_S + UNMEASURED_S
        self.lateness_s, self.way_s = UNMEASURED_LATENESS_S, UNMEASURED_S
        self.adopt(validity_s, guard_s, window_s=window_s)
        self.guard_s = validity_s + UNMEASURED_LATENESS_S if guard_s is None else guard_s

    def adopt(self, validity_s: float, guard_s: float | None, *, window_s: float = 1.0) -> None:
        """Count with other rules from now on."""
        self._shortest_s = self._wanted_s = self.validity_s = validity_s
        self._configured_s = guard_s
        self._window_s = window_s
        if guard_s is not None:
            self.guard_s = guard_s

    @property
    def gather_s(self) -> float:
        """How long a slot that is due may wait for the next ones: to wake up for each costs more than the calls.

        What is late counts in a guard that is measured. In a fixed one there is room for it.
        """
        if self._configured_s is None:
            return 0.0
        return max(0.0, min(LONGEST_GATHER_S, GATHER_OF_VALIDITY * self.validity_s - TIMER_STEP_S))

    def round_trip(self, seconds: float, now_s: float, force_s: float) -> None:
        """Take the duration of an exchange with Redis, and the guard in force; once a second, draw conclusions."""
        self._round_trips.append(seconds)
        self._force_s = force_s
        if now_s - self._measured_s >= REFRESH_S:
            self._measured_s = now_s
            if self._known_from_s is None and len(self._lateness) >= ENOUGH_SAMPLES[0]:
                self._known_from_s = now_s + ENOUGH_S
            self._refresh(now_s)

    def fired(self, lateness_s: float) -> None:
        """Take how late a slot was when its call got it."""
        self._lateness.append(lateness_s)
        self._lateness_of_all.append(lateness_s)

    def dropped(self, lateness_s: float) -> None:
        """Take how late a slot was that no call got for that, though one waited."""
        self._lateness_of_all.append(lateness_s)

    def _refresh(self, now_s: float) -> None:
        trips = sorted(self._round_trips)
        if self._configured_s is None:
            self.lead_s = LEAD_FLOOR_S + min(_quantile(trips, 0.99), LONGEST_LEAD_S)
        else:  # who allows for a fixed guard loses nothing by a slot that is a little late
            self.lead_s = SHORTEST_LEAD_S + min(_quantile(trips, 0.75), LONGEST_LEAD_S)
        lateness = min(_quantile(sorted(self._lateness), 0.999), LONGEST_PART_S)
        known = self._known_from_s is not None and now_s >= self._known_from_s
        self.lateness_s = lateness if known or len(self._lateness) >= ENOUGH_SAMPLES[1] else UNMEASURED_LATENESS_S
        self.way_s = min(_quantile(trips, 0.95) - trips[0], LONGEST_PART_S) + min(trips[0], LONGEST_PART_S)
        if self._configured_s is None:
            self._weigh_validities()
            self.guard_s = self._wanted_s + self.lateness_s + self.way_s
            # Longer only once the pace of all allows for it.
            allowed_s = self._force_s - self.lateness_s - self.way_s
            self.validity_s = max(self._shortest_s, min(self._wanted_s, allowed_s))

    def _weigh_validities(self) -> None:
        if len(self._lateness_of_all) < ENOUGH_TO_WEIGH:
            return
        late = sorted(self._lateness_of_all)
        costs = {factor * self._shortest_s: self._cost(late, factor * self._shortest_s) for factor in VALIDITY_FACTORS}
        best_s = min(costs, key=costs.__getitem__)
        if costs[best_s] < costs.get(self._wanted_s, 1.0) - WORTH_IT:
            self._wanted_s = best_s

    def _cost(self, late: list[float], validity_s: float) -> float:
        """The part of a limit that this validity costs: in guard, and in slots that are dropped."""
        fired = late[: bisect_right(late, validity_s)]
        return (validity_s + _quantile(fired, 0.999)) / self._window_s + 1 - len(fired) / len(late)


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[int(share * (len(ordered) - 1))] if ordered else UNMEASURED_S
