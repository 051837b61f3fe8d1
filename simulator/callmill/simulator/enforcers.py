# ruff: noqa: D102, ARG002 - Enforcer documents its methods, and an implementation may not need every argument.
"""How API servers count: token bucket, sliding log, fixed window, nginx's limit_req, calls in flight.

Every enforcer is a pure state machine: times are integer nanoseconds handed in, never read, and never go back.
``wait_ns`` asks, ``charge`` takes. Asking changes no answer, so a call that another limit refuses costs nothing here.

A sliding window is half open, ``(t - window, t]``: two calls exactly one window apart never share one.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from callmill.config.limit_spec import LimitSpec, Unit
from callmill.simulator.options import EnforcerKind

_NS_PER_S = 1_000_000_000
_NS_PER_MS = 1_000_000


class Enforcer(Protocol):
    """One limit and what is left of it."""

    limit: LimitSpec

    def wait_ns(self, now_ns: int, cost: int) -> int:
        """Return 0 when ``cost`` fits now, else the time until it would if nothing else came, at least 1.

        A cost above the whole limit never fits; the time then says nothing.
        """
        ...

    def charge(self, now_ns: int, cost: int) -> None:
        """Take ``cost``. What does not fit is owed: nothing fits until it is made good."""
        ...

    def release(self) -> None:
        """Note that a charged call has ended."""
        ...

    def remaining(self, now_ns: int) -> int:
        """Return how much fits now."""
        ...

    def reset_ns(self, now_ns: int) -> int:
        """Return the time until all of the limit is free again if nothing came."""
        ...


class TokenBucket:
    """A bucket of ``capacity``, refilled with the limit's amount per window; full at first.

    Exact: the level is kept in integers of 1/window_ns of a unit.
    """

    def __init__(self, limit: LimitSpec, capacity: int) -> None:
        self.limit = limit
        self._window_ns = limit.window_s * _NS_PER_S
        self._full = capacity * self._window_ns
        self._level = self._full
        self._at_ns: int | None = None

    def wait_ns(self, now_ns: int, cost: int) -> int:
        missing = cost * self._window_ns - self._refilled(now_ns)
        return -(-missing // self.limit.amount) if missing > 0 else 0

    def charge(self, now_ns: int, cost: int) -> None:
        self._level = self._refilled(now_ns) - cost * self._window_ns
        self._at_ns = now_ns

    def release(self) -> None:
        """A bucket refills by time alone."""

    def remaining(self, now_ns: int) -> int:
        return self._refilled(now_ns) // self._window_ns

    def reset_ns(self, now_ns: int) -> int:
        return -(-(self._full - self._refilled(now_ns)) // self.limit.amount)

    def _refilled(self, now_ns: int) -> int:
        if self._at_ns is None:
            return self._full
        return min(self._full, self._level + (now_ns - self._at_ns) * self.limit.amount)


class SlidingLog:
    """At most the limit's amount in any window; remembers each call of the last window.

    Memory: two numbers per call of one window, so at most ``amount`` pairs.
    """

    def __init__(self, limit: LimitSpec) -> None:
        self.limit = limit
        self._window_ns = limit.window_s * _NS_PER_S
        self._calls: deque[tuple[int, int]] = deque()
        self._used = 0

    def wait_ns(self, now_ns: int, cost: int) -> int:
        self._forget(now_ns)
        excess = self._used + cost - self.limit.amount
        if excess <= 0:
            return 0
        for at_ns, freed in self._calls:
            excess -= freed
            if excess <= 0:
                return at_ns + self._window_ns - now_ns
        return self._window_ns

    def charge(self, now_ns: int, cost: int) -> None:
        self._forget(now_ns)
        self._calls.append((now_ns, cost))
        self._used += cost

    def release(self) -> None:
        """A log forgets by time alone."""

    def remaining(self, now_ns: int) -> int:
        self._forget(now_ns)
        return self.limit.amount - self._used

    def reset_ns(self, now_ns: int) -> int:
        self._forget(now_ns)
        return self._calls[-1][0] + self._window_ns - now_ns if self._calls else 0

    def _forget(self, now_ns: int) -> None:
        calls, until_ns = self._calls, now_ns - self._window_ns
        while calls and calls[0][0] <= until_ns:
            self._used -= calls.popleft()[1]


class FixedWindow:
    """At most the limit's amount in each window ``[k * window, (k + 1) * window)`` of the clock."""

    def __init__(self, limit: LimitSpec) -> None:
        self.limit = limit
        self._window_ns = limit.window_s * _NS_PER_S
        self._window = 0
        self._used = 0

    def wait_ns(self, now_ns: int, cost: int) -> int:
        return 0 if cost <= self.remaining(now_ns) else self._until_next_ns(now_ns)

    def charge(self, now_ns: int, cost: int) -> None:
        window = now_ns // self._window_ns
        self._used = self._used + cost if window == self._window else cost
        self._window = window

    def release(self) -> None:
        """A window starts anew by time alone."""

    def remaining(self, now_ns: int) -> int:
        return self.limit.amount - (self._used if now_ns // self._window_ns == self._window else 0)

    def reset_ns(self, now_ns: int) -> int:
        return self._until_next_ns(now_ns)

    def _until_next_ns(self, now_ns: int) -> int:
        return self._window_ns - now_ns % self._window_ns


class NginxLimitReq:
    """What nginx does for ``limit_req zone=... burst=N nodelay`` and one key.

    Its integers are kept: the rate is in 1/1000 request per second, rounded down (``1r/m`` is 0.96 a minute), and time
    in milliseconds. The first call of the key is free. A refused call changes nothing. Costs other than 1 do not exist.
    https://github.com/nginx/nginx/blob/master/src/http/modules/ngx_http_limit_req_module.c
    """

    def __init__(self, limit: LimitSpec, burst: int) -> None:
        self.limit = limit
        self._rate = limit.amount * 1000 // limit.window_s
        self._burst = burst * 1000
        self._excess = 0
        self._last_ms: int | None = None

    def wait_ns(self, now_ns: int, cost: int) -> int:
        over = self._excess_with_call(now_ns // _NS_PER_MS) - self._burst
        if over <= 0 or self._last_ms is None:
            return 0
        # The truncated division drains `over` no earlier than at the smallest ms with rate * ms // 1000 >= needed.
        needed = self._excess + 1000 - self._burst
        fits_at_ms = self._last_ms + -(-needed * 1000 // self._rate)
        return fits_at_ms * _NS_PER_MS - now_ns

    def charge(self, now_ns: int, cost: int) -> None:
        now_ms = now_ns // _NS_PER_MS
        self._excess = self._excess_with_call(now_ms)
        self._last_ms = now_ms

    def release(self) -> None:
        """The excess drains by time alone."""

    def remaining(self, now_ns: int) -> int:
        if self._last_ms is None:
            return 1 + self._burst // 1000
        return max(0, self._burst - self._excess_with_call(now_ns // _NS_PER_MS) + 1000) // 1000

    def reset_ns(self, now_ns: int) -> int:
        if self._last_ms is None:
            return 0
        needed = self._excess + 1000
        free_at_ms = self._last_ms + -(-needed * 1000 // self._rate)
        return max(0, free_at_ms * _NS_PER_MS - now_ns)

    def _excess_with_call(self, now_ms: int) -> int:
        if self._last_ms is None:
            return 0
        return max(0, self._excess - self._rate * (now_ms - self._last_ms) // 1000 + 1000)


class InFlight:
    """At most the limit's amount of calls at once."""

    def __init__(self, limit: LimitSpec) -> None:
        self.limit = limit
        self._used = 0

    def wait_ns(self, now_ns: int, cost: int) -> int:
        """Return 1 second when full: when a call will end is not known."""
        return 0 if self._used < self.limit.amount else _NS_PER_S

    def charge(self, now_ns: int, cost: int) -> None:
        self._used += 1

    def release(self) -> None:
        self._used -= 1

    def remaining(self, now_ns: int) -> int:
        return self.limit.amount - self._used

    def reset_ns(self, now_ns: int) -> int:
        """Return 0: when the calls in flight will end is not known."""
        return 0


def make_enforcer(limit: LimitSpec, kind: EnforcerKind, burst: int | None) -> Enforcer:
    """Return the enforcer of one limit; ``burst`` as in SimulatorOptions."""
    if limit.unit is Unit.CONCURRENT:
        return InFlight(limit)
    if kind is EnforcerKind.SLIDING:
        return SlidingLog(limit)
    if kind is EnforcerKind.FIXED:
        return FixedWindow(limit)
    if kind is EnforcerKind.NGINX:
        return NginxLimitReq(limit, burst or 0)
    return TokenBucket(limit, limit.amount if limit.unit.is_tokens else burst or 1)
