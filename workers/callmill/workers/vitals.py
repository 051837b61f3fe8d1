"""Vitals: how this process fares: how late its event loop is, what memory it holds, what a call costs it."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections import deque
from pathlib import Path

from callmill.workers.rhythm import Rhythm

_SAMPLE_EVERY_S = 0.25
_LOOKS = 6
"""Looks that calls and their CPU are told over; one a second."""

_STATM = Path("/proc/self/statm")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Vitals:
    """Measures this process. Belongs to one event loop."""

    def __init__(self) -> None:
        self._lags_s = deque([0.0], maxlen=_LOOKS)
        self._spent: deque[tuple[float, float, int]] = deque(maxlen=_LOOKS)

    @property
    def loop_lag_s(self) -> float:
        """How late the event loop was at most within the last seconds."""
        return max(self._lags_s)

    async def run(self, rhythm: Rhythm) -> None:
        """Measure how late the loop is, until cancelled."""
        while True:
            asked_s = time.perf_counter()
            wait_s = await rhythm.pause(_SAMPLE_EVERY_S, at_rest_s=1.0)
            self._lags_s[-1] = max(self._lags_s[-1], time.perf_counter() - asked_s - wait_s)

    def cpu_us_per_call(self, calls: int) -> float | None:
        """Return CPU microseconds per call over the last seconds, from all calls so far; None while none is made."""
        self._lags_s.append(0.0)
        self._spent.append((time.monotonic(), time.process_time(), calls))
        (_, then_s, calls_then), (_, now_s, calls_now) = self._spent[0], self._spent[-1]
        made = calls_now - calls_then
        return (now_s - then_s) * 1e6 / made if made else None

    @property
    def calls_per_s(self) -> float:
        """Calls made per second over the last seconds, as of the latest look."""
        if not self._spent:
            return 0.0
        (then_s, _, calls_then), (now_s, _, calls_now) = self._spent[0], self._spent[-1]
        return (calls_now - calls_then) / (now_s - then_s) if now_s > then_s else 0.0


def rss_bytes() -> int:
    """Return the memory that this process holds now; where the platform does not say, the most it ever held."""
    try:
        return int(_STATM.read_bytes().split()[1]) * _PAGE_BYTES
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
