"""The largest sum in any window of a stream, exactly, in constant time per call."""

from __future__ import annotations

from collections import deque


class WindowPeak:
    """The largest sum in any half-open window of one length; independent of how calls were admitted.

    Memory: one pair per call of the last window. Older calls are only remembered in the peak.
    """

    def __init__(self, window_ns: int) -> None:
        self.peak = 0
        self._window_ns = window_ns
        self._calls: deque[tuple[int, int]] = deque()
        self._sum = 0

    def add(self, at_ns: int, amount: int) -> None:
        """Count ``amount`` at a time not before the last one."""
        calls, until_ns = self._calls, at_ns - self._window_ns
        while calls and calls[0][0] <= until_ns:
            self._sum -= calls.popleft()[1]
        calls.append((at_ns, amount))
        self._sum += amount
        self.peak = max(self.peak, self._sum)
