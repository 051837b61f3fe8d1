"""Model servers for the limiter's scripts, and a fleet that calls them under a time that the test sets."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from limits_kit import Fleet, Worker

LATENCY_US = 50_000
PAUSE_US = 250_000
ROUNDING = 1e-4
ASK, START, REFUSED = range(3)


class Server(Protocol):
    """Whatever takes calls or refuses them."""

    def take(self, us: int) -> bool:
        """Take a call, or refuse it."""
        ...


class BucketServer:
    """A bucket that refills evenly and takes ``burst`` calls at once."""

    def __init__(self, rate: float, burst: int) -> None:
        self.rate, self.burst = rate, burst
        self._level, self._seen = float(burst), 0

    def take(self, us: int, units: int = 1) -> bool:
        """Take a call where the bucket holds what it counts as."""
        self._level = min(self.burst, self._level + (us - self._seen) * self.rate / 1e6)
        self._seen = us
        if self._level < units - ROUNDING:
            return False
        self._level -= units
        return True


class SlidingServer:
    """A log that holds no more than ``amount`` calls in any window."""

    def __init__(self, amount: int, window_us: int = 1_000_000) -> None:
        self.amount, self.window_us = amount, window_us
        self._log: deque[int] = deque()

    def take(self, us: int) -> bool:
        """Take a call where the window has room for it."""
        while self._log and self._log[0] <= us - self.window_us:
            self._log.popleft()
        if len(self._log) >= self.amount:
            return False
        self._log.append(us)
        return True


@dataclass
class Caller:
    """One worker that sends what it is granted to a server and reports what is refused, as workers do."""

    fleet: Fleet
    server: Server
    worker: Worker = field(default_factory=lambda: Worker("caller"))
    taken_us: list[int] = field(default_factory=list)
    refused_us: list[int] = field(default_factory=list)
    in_a_row: int = 0
    untold: int = 0

    def run(self, seconds: float, *, calls: int = 256, every_us: int = 0) -> None:
        """Want calls all the time; or, with ``every_us``, that many calls then and then."""
        end = self.fleet.us + round(seconds * 1e6)
        self._events = [(self.fleet.us, ASK, 0)]
        self._paused_until = 0
        while self._events and self._events[0][0] < end:
            at, kind, start = heapq.heappop(self._events)
            if kind == START:
                self._start(start)
                continue
            self.fleet.set_time(max(at, self.fleet.us))
            if kind == ASK:
                self._ask(at, calls, every_us)
            else:
                self._report(start)
        self.fleet.set_time(end)

    def _ask(self, at: int, calls: int, every_us: int) -> None:
        untold, self.untold = self.untold, 0
        for slot in self.fleet.reserve(self.worker, calls, taken=untold).starts_us:
            heapq.heappush(self._events, (slot, START, slot))
        following = at + every_us if every_us else max(self.worker.again_us, at + 10_000)
        heapq.heappush(self._events, (following, ASK, 0))

    def _start(self, start: int) -> None:
        if start < self._paused_until:
            return
        if self.server.take(start):
            self.taken_us.append(start)
            self.untold += 1
            self.in_a_row = 0
        else:
            self.refused_us.append(start)
            heapq.heappush(self._events, (start + LATENCY_US, REFUSED, start))

    def _report(self, start: int) -> None:
        if start >= self._paused_until:
            self.in_a_row += 1
            untold, self.untold = self.untold, 0
            self.fleet.refused(self.fleet.us - start, in_a_row=self.in_a_row, taken=untold)
            self.fleet.pause(PAUSE_US)
            self._paused_until = self.fleet.us + PAUSE_US
