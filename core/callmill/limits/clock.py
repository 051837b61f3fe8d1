"""Where Redis's clock stands on this process's monotonic clock."""

from __future__ import annotations

DRIFT = 50e-6
"""Two quartz clocks drift apart by less than this, in seconds per second."""

AHEAD_S = 0.001
"""A bound is lower than the kept one by more than the kept one's round trip and this only if Redis's clock was set."""


class RedisClock:
    """Maps Redis time to ``time.monotonic()``, never too early.

    Redis read its clock before its answer arrived, so ``arrival - redis time`` bounds the offset from above. The
    tightest bound seen is kept and ages by the drift; it is late by no more than the fastest answer's way back. A way
    that has become longer moves nothing. Redis did not read it before it was asked either: an answer for which the kept
    bound is too early shows that the clock was set back.
    """

    def __init__(self) -> None:
        self._offset_s: float | None = None
        self._seen_s = 0.0
        self._trip_s = 0.0

    def observe(self, redis_us: int, sent_s: float, arrived_s: float) -> bool:
        """Take the Redis time of an answer; times of the monotonic clock. True: Redis's clock was set ahead."""
        bound, trip_s = arrived_s - redis_us / 1e6, arrived_s - sent_s
        if self._offset_s is None:
            self._keep(bound, trip_s, arrived_s)
            return False
        aged = self._aged(arrived_s)
        # Aged both ways: since the kept bound was seen, the other clock may have drifted ahead as well.
        jumped = bound < aged - 2 * DRIFT * (arrived_s - self._seen_s) - self._trip_s - AHEAD_S
        set_back = bound - trip_s > aged
        if bound <= aged or set_back:
            self._keep(bound, trip_s, arrived_s)
        return jumped

    def local_s(self, redis_us: int, now_s: float) -> float:
        """The monotonic time at which Redis's clock surely shows ``redis_us``."""
        return redis_us / 1e6 + self._aged(now_s)

    def forget(self) -> None:
        """Drop what is known: Redis's clock is another one now."""
        self._offset_s = None

    def _keep(self, bound: float, trip_s: float, seen_s: float) -> None:
        self._offset_s, self._trip_s, self._seen_s = bound, trip_s, seen_s

    def _aged(self, now_s: float) -> float:
        return (self._offset_s or 0.0) + DRIFT * (now_s - self._seen_s)
