"""Where Redis's clock stands on this process's monotonic clock."""

from __future__ import annotations

DRIFT = 50e-6
"""Two quartz clocks drift apart by less than this, in seconds per second."""


class RedisClock:
    """Maps Redis time to ``time.monotonic()``, never too early.

    Redis read its clock before its answer arrived, so ``arrival - redis time`` bounds the offset from above. The
    tightest bound seen is kept and ages by the drift; it is late by no more than the fastest answer's way back.
    """

    def __init__(self) -> None:
        self._offset_s: float | None = None
        self._seen_s = 0.0

    def observe(self, redis_us: int, arrived_s: float) -> None:
        """Take the Redis time of an answer that arrived at ``arrived_s`` of the monotonic clock."""
        bound = arrived_s - redis_us / 1e6
        if self._offset_s is None or bound <= self._aged(arrived_s):
            self._offset_s, self._seen_s = bound, arrived_s

    def local_s(self, redis_us: int, now_s: float) -> float:
        """The monotonic time at which Redis's clock surely shows ``redis_us``."""
        return redis_us / 1e6 + self._aged(now_s)

    def forget(self) -> None:
        """Drop what is known: Redis's clock is another one now."""
        self._offset_s = None

    def _aged(self, now_s: float) -> float:
        return (self._offset_s or 0.0) + DRIFT * (now_s - self._seen_s)
