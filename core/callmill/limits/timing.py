"""What this process measures of its own punctuality, and the guard and lead that follow."""

from __future__ import annotations

from collections import deque

REFRESH_S = 1.0
UNMEASURED_S = 0.001
UNMEASURED_LATENESS_S = 0.040
ENOUGH_SAMPLES = 100
"""A process that has just started is late in ways it cannot know yet: first connections, first runs of its code."""

LONGEST_PART_S = 0.020
LEAD_FLOOR_S, SHORTEST_LEAD_S = 0.002, 0.0005
LONGEST_LEAD_S = 0.100


class Timing:
    """Round trips to Redis and lateness of fired slots.

    guard = slot validity + lateness (99.9 %) + spread of the round trips (95 % less the best) + best round trip.
    The validity covers how late a slot may be fired; the lateness stands for the way from the slot to the socket;
    the spread for the jitter of a network; the best round trip bounds the error of the clock map.
    """

    def __init__(self, validity_s: float, guard_s: float | None) -> None:
        self._validity_s = validity_s
        self._configured_s = guard_s
        self._round_trips: deque[float] = deque(maxlen=256)
        self._lateness: deque[float] = deque(maxlen=1024)
        self._measured_s = float("-inf")
        self.guard_s = validity_s + UNMEASURED_LATENESS_S if guard_s is None else guard_s
        self.lead_s = LEAD_FLOOR_S + UNMEASURED_S
        self.lateness_s, self.way_s = UNMEASURED_LATENESS_S, UNMEASURED_S

    def adopt(self, validity_s: float, guard_s: float | None) -> None:
        """Count with another validity of slots and configured guard from now on."""
        self._validity_s, self._configured_s = validity_s, guard_s
        if guard_s is not None:
            self.guard_s = guard_s
        self._refresh()

    def round_trip(self, seconds: float, now_s: float) -> None:
        """Take the duration of an exchange with Redis; once a second, bring guard and lead up to date."""
        self._round_trips.append(seconds)
        if now_s - self._measured_s >= REFRESH_S:
            self._measured_s = now_s
            self._refresh()

    def fired(self, lateness_s: float) -> None:
        """Take how late a slot was when its call got it."""
        self._lateness.append(lateness_s)

    def _refresh(self) -> None:
        trips = sorted(self._round_trips)
        if self._configured_s is None:
            self.lead_s = LEAD_FLOOR_S + min(_quantile(trips, 0.99), LONGEST_LEAD_S)
        else:  # who allows for a fixed guard loses nothing by a slot that is a little late
            self.lead_s = SHORTEST_LEAD_S + min(_quantile(trips, 0.95), LONGEST_LEAD_S)
        lateness = min(_quantile(sorted(self._lateness), 0.999), LONGEST_PART_S)
        self.lateness_s = UNMEASURED_LATENESS_S if len(self._lateness) < ENOUGH_SAMPLES else lateness
        if trips:
            self.way_s = min(_quantile(trips, 0.95) - trips[0], LONGEST_PART_S) + min(trips[0], LONGEST_PART_S)
        if self._configured_s is None:
            self.guard_s = self._validity_s + self.lateness_s + self.way_s


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[int(share * (len(ordered) - 1))] if ordered else UNMEASURED_S
