"""Pace: how fast a counter has grown lately."""

from __future__ import annotations

_OVER_S = 0.2


class Pace:
    """Growth per second over the last fifth of a second or so, from readings at any times."""

    def __init__(self) -> None:
        self._count = 0
        self._since_s = 0.0
        self._per_s = 0.0

    def per_s(self, count: int, now_s: float) -> float:
        """Take a reading and return the growth per second."""
        elapsed_s = now_s - self._since_s
        if elapsed_s >= _OVER_S:
            self._per_s = (count - self._count) / elapsed_s
            self._count, self._since_s = count, now_s
        return self._per_s

    @property
    def latest_per_s(self) -> float:
        """What the latest reading returned."""
        return self._per_s
