"""The limiter's scripts on a real Redis whose time the test sets, and the fleet's behaviour on top of them."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import redis

from callmill.config.limit_spec import Enforcer, parse_limit
from callmill.limits.keys import Keys
from callmill.limits.permits import Lease
from callmill.limits.rules import Clock, LimitRules, clocks
from callmill.limits.store import HORIZON_US, LONGEST_COLD_WAIT_US, script

BEGIN_US = 1_700_000_000_000_000
LEAD_US = 2_000
GUARD_US = 8_000
TIME_KEY = "test:now"

FAKE_TIME = f"""
local real = redis
local redis = {{call = function(command, ...)
  if command ~= 'TIME' then return real.call(command, ...) end
  local us = tonumber(real.call('GET', '{TIME_KEY}'))
  return {{math.floor(us / 1000000), us % 1000000}}
end}}
"""


def rules(
    *limits: str, enforcer: Enforcer = Enforcer.SLIDING, burst: int = 1, guard_s: float | None = None
) -> LimitRules:
    """Return rules from the texts of their limits."""
    return LimitRules(tuple(parse_limit(text) for text in limits), enforcer, burst, guard_s)


@dataclass
class Worker:
    """What one worker remembers between its exchanges."""

    name: str
    boot: str = ""
    seq: int = 0
    latest_us: int = BEGIN_US - 10**12
    starts_us: list[int] = field(default_factory=list)
    again_us: int = 0
    exchanges: int = 0


@dataclass(frozen=True)
class Reply:
    """One answer of the reserve script."""

    now_us: int
    boot: str
    by: int
    again_in_us: int
    pause_us: int
    reason: str
    guard_us: int
    starts_us: list[int]


class Fleet:
    """Workers of one API that speak to the scripts directly, at the times that the test sets."""

    def __init__(self, url: str, limits: LimitRules) -> None:
        self.redis = redis.Redis.from_url(url, decode_responses=True)
        self.keys = Keys("test")
        self.clocks: Sequence[Clock] = clocks(limits)
        self.limit_keys = [self.keys.limit(clock.spec.unit, clock.spec.window_s) for clock in self.clocks]
        self._reserve = self.redis.register_script(FAKE_TIME + script("reserve"))
        self._pause = self.redis.register_script(FAKE_TIME + script("pause"))
        self._permits = self.redis.register_script(FAKE_TIME + script("permits"))
        self.set_time(BEGIN_US)
        self.publish()

    def set_time(self, us: int) -> None:
        """Set what Redis's TIME shows."""
        self.us = us
        self.redis.set(TIME_KEY, us)

    def wipe(self) -> None:
        """Lose all state."""
        self.redis.flushall()
        self.set_time(self.us)

    def publish(self) -> None:
        """Write the limits, as every worker does at its start."""
        for key, clock in zip(self.limit_keys, self.clocks, strict=True):
            self.redis.hset(key, mapping=clock.fields())

    def reserve(
        self,
        worker: Worker,
        calls: int,
        costs: Sequence[int] = (),
        *,
        settle: int = 0,
        unfired: int = 0,
        since_us: int | None = None,
        guard_us: int = GUARD_US,
    ) -> Reply:
        """Make one exchange for a worker; ``since_us``: the start that it settles, now unless given."""
        keys = [self.keys.meta, self.keys.active, self.keys.queue, *self.limit_keys]
        past = worker.latest_us - self.us
        known = [worker.name, worker.boot, worker.seq, past, LEAD_US, guard_us]
        since = 0 if since_us is None else since_us - self.us
        dues = [max(0, settle), max(0, -settle), unfired, since]
        args = [*known, *dues, self.keys.channel, HORIZON_US, LONGEST_COLD_WAIT_US, calls, *costs]
        raw = self._reserve(keys=keys, args=args)
        if len(raw) == 1:
            self.publish()
            raw = self._reserve(keys=keys, args=args)
        now, boot, seq, again, by, pause, reason, guard, *offsets = raw
        worker.boot, worker.seq, worker.again_us = boot, seq, now + again
        worker.exchanges += 1
        starts = [now + offset for offset in offsets]
        if starts:
            worker.latest_us = starts[-1]
            worker.starts_us += starts
        return Reply(now, boot, by, again, pause, reason, guard, starts)

    def used(self, index: int = 0) -> int:
        """Return what the quota at this place in the limits has counted."""
        fields = self.redis.hgetall(self.limit_keys[index])
        counted = sum(int(count) for bucket, count in fields.items() if bucket.isdigit())
        assert counted == int(fields.get("total", 0)), "the sum that is kept differs from what the buckets hold"
        return counted

    def pause(self, us: int, reason: str = "429") -> int:
        """Pause the API; return what is left of the pause."""
        left: int = self._pause(keys=[self.keys.meta, *self.limit_keys], args=[us, reason, self.keys.channel])
        return left

    def permits(self, worker: str, want: int, used: int, had: int, *, limit: int, lease_us: int) -> Lease:
        """Renew a lease of permits."""
        return Lease(*self._permits(keys=self.keys.permits, args=[worker, want, used, had, lease_us, limit]))

    def warm(self) -> Worker:
        """Let a first worker get over the cold start and return it."""
        worker = Worker("first")
        self.reserve(worker, 0)
        self.set_time(self.us + 2 * LONGEST_COLD_WAIT_US)
        return worker

    def run(
        self, workers: Sequence[Worker], seconds: float, *, calls: Sequence[int], leave: dict[int, float] | None = None
    ) -> None:
        """Let workers with endless demand ask, each when it may ask again; ``leave``: index -> second of its end."""
        begin, end = self.us, self.us + round(seconds * 1e6)
        due = [(begin + index, index) for index in range(len(workers))]
        heapq.heapify(due)
        while due and due[0][0] < end:
            at, index = heapq.heappop(due)
            if leave and index in leave and at - begin > leave[index] * 1e6:
                continue
            self.set_time(at)
            self.reserve(workers[index], calls[index])
            heapq.heappush(due, (max(workers[index].again_us, at + 500), index))


def jain(shares: Sequence[int]) -> float:
    """Return Jain's index of fairness: 1 when all shares are equal, 1/n when one has everything."""
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))


def worst_window(starts_us: Sequence[float], window_us: int) -> int:
    """Return the most starts in any half-open window of this length."""
    ordered, worst, first = sorted(starts_us), 0, 0
    for last, start in enumerate(ordered):
        while ordered[first] <= start - window_us:
            first += 1
        worst = max(worst, last - first + 1)
    return worst


def heaviest_window(slots: Sequence[tuple[float, int]], window_us: int) -> int:
    """Return the most units that any half-open window of this length holds; slots: start and units."""
    ordered, worst, first, total = sorted(slots), 0, 0, 0
    for start, units in ordered:
        total += units
        while ordered[first][0] <= start - window_us:
            total -= ordered[first][1]
            first += 1
        worst = max(worst, total)
    return worst
