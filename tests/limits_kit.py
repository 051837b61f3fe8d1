"""The limiter's scripts on a real Redis whose time the test sets, and the fleet's behaviour on top of them."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import redis

from callmill.config.limit_spec import Enforcer, parse_limit
from callmill.config.lua_script import Call
from callmill.jobs.traffic import NORMAL, TrafficClass
from callmill.limits import scripts
from callmill.limits.cost import Columns
from callmill.limits.keys import Keys
from callmill.limits.layout import Layout, layout
from callmill.limits.permits import Lease
from callmill.limits.rules import Clock, LimitRules
from callmill.limits.store import LONGEST_COLD_WAIT_US, Grant, Request, Settlement, reserve_call

BEGIN_US = 1_700_000_000_000_000
LEAD_US = 2_000
GUARD_US = 8_000
TIME_KEY = "test:now"

Fields = tuple[str, str]
"""A key and a field of the hash there."""

FAKE_TIME = f"""
local real = redis
local redis = setmetatable({{call = function(command, ...)
  if command ~= 'TIME' then return real.call(command, ...) end
  local us = tonumber(real.call('GET', '{TIME_KEY}'))
  return {{math.floor(us / 1000000), us % 1000000}}
end}}, {{__index = real}})
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
    heaviest: int = 1
    starts_us: list[int] = field(default_factory=list)
    again_us: int = 0
    exchanges: int = 0
    traffic: TrafficClass = NORMAL
    model: str = ""
    stepped: bool = False
    ahead_us: int | None = None


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
    keys: list[int]
    scopes: list[tuple[int, str]]
    before: list[str | None]
    after: list[str | None]


class Fleet:
    """Workers of one API that speak to the scripts directly, at the times that the test sets."""

    def __init__(self, url: str, limits: LimitRules) -> None:
        self.redis = redis.Redis.from_url(url, decode_responses=True)
        self.keys = Keys("test")
        self._scripts = {
            script: str(self.redis.script_load(FAKE_TIME + script.text))
            for script in (
                *(scripts.RESERVE, scripts.PAUSE, scripts.PERMITS, scripts.REFUSED, scripts.FEED, scripts.RESTORE),
            )
        }
        self._time_is_new = True
        self.jumped_us = 0
        self.watchful = False
        self.set_time(BEGIN_US)
        self.use(limits)

    def set_time(self, us: int) -> None:
        """Set what Redis's TIME shows to the scripts."""
        self.us = us
        self._time_is_new = True

    def jump(self, us: int) -> None:
        """Let TIME jump while no time passes for the workers."""
        self.jumped_us += us
        self.set_time(self.us + us)

    def wipe(self) -> None:
        """Lose all state."""
        self.redis.flushall()
        self.set_time(self.us)

    @property
    def clocks(self) -> list[Clock]:
        """The limits that hold for calls of no model, in the order of their keys."""
        return [node.clock for node in self.layout.nodes]

    def use(self, limits: LimitRules) -> None:
        """Let other limits hold, as workers with another configuration do."""
        self.rules = limits
        self.layout = layout(limits, self.keys, "", NORMAL)
        self.limit_keys = self.layout.redis_keys
        self.publish()

    def publish(self, limits: Layout | None = None) -> None:
        """Write a group's limits, as every worker does at its start."""
        for node in (limits or self.layout).nodes:
            self.redis.hset(node.key, mapping=node.clock.fields())
            for field_name, value in node.clock.beginning().items():
                self.redis.hsetnx(node.key, field_name, value)

    def reserve(
        self,
        worker: Worker,
        calls: int,
        costs: Sequence[int | tuple[int, int]] = (),
        *,
        settle: int = 0,
        unfired: int = 0,
        since_us: int | None = None,
        guard_us: int = GUARD_US,
        allowances: Sequence[int] = (),
        taken: int = 0,
        key: int = 1,
        read: Sequence[Fields] = (),
    ) -> Reply:
        """Make one exchange for a worker.

        ``costs``: tokens of the calls, or weights and tokens. ``since_us``: the start that it settles, if not now.
        ``taken``: calls that the API took since the last exchange.
        """
        since = 0 if since_us is None else since_us - self.us
        settled = settle or unfired
        due = Settlement(key, since, (0, max(0, settle), 0, 0), (unfired, max(0, -settle), 0, 0))
        request = Request(
            boot=worker.boot,
            seq=worker.seq,
            latest_us=worker.latest_us - (self.us - self.jumped_us),
            heaviest=worker.heaviest,
            lead_us=LEAD_US,
            guard_us=guard_us,
            doubt="stepped" if worker.stepped else "look",
            settlements=[due] if settled else [],
            allowances=allowances or [calls] * len(self.rules.keys),
            taken=[taken, *([0] * (len(self.rules.keys) - 1))],
            calls=calls,
            costs=[_columns(*cost) if isinstance(cost, tuple) else _columns(1, cost) for cost in costs],
        )
        return self.exchange(worker, request, read)

    def reserve_weighted(self, worker: Worker, costs: Sequence[Columns], guard_us: int = GUARD_US) -> list[int]:
        """Ask for starts of calls with these costs, by column; return them."""
        request = Request(
            boot=worker.boot,
            seq=worker.seq,
            latest_us=worker.latest_us - (self.us - self.jumped_us),
            heaviest=worker.heaviest,
            lead_us=LEAD_US,
            guard_us=guard_us,
            allowances=[len(costs)] * len(self.rules.keys),
            calls=len(costs),
            costs=costs,
        )
        return self.exchange(worker, request).starts_us

    def _run(self, call: Call, read: Sequence[Fields] = ()) -> list[Any]:
        """Run a script; return its answer between the values of some fields before it and after it. One round trip."""
        with self.redis.pipeline(transaction=False) as pipe:
            if self._time_is_new:
                pipe.set(TIME_KEY, self.us)
            for key, field_name in read:
                pipe.hget(key, field_name)
            pipe.evalsha(self._scripts[call.script], len(call.keys), *call.keys, *call.arguments)
            for key, field_name in read:
                pipe.hget(key, field_name)
            answers = pipe.execute()
        answers, self._time_is_new = answers[self._time_is_new :], False
        return [answers[: len(read)], answers[len(read)], answers[len(read) + 1 :]]

    def exchange(self, worker: Worker, request: Request, read: Sequence[Fields] = ()) -> Reply:
        """Make one exchange for a worker as the request says; ``read``: fields to read before and after it."""
        group = self.layout
        if worker.model or worker.traffic != NORMAL:
            group = layout(self.rules, self.keys, worker.model, worker.traffic)
        call = reserve_call(self.keys, worker.name, group, request)
        before, raw, after = self._run(call, read)
        if len(raw) == 1:
            self.publish(group)
            before, raw, after = self._run(call, read)
        known, grant = worker.boot, Grant(*raw)
        now, starts, keys_used = grant.now_us, [grant.now_us + offset for offset in grant.starts_us], grant.keys
        worker.boot, worker.seq, worker.again_us = grant.boot, grant.seq, now + grant.again_us
        worker.exchanges += 1
        self._watch(worker, now, known)
        if worker.stepped and self.watchful:
            starts, keys_used = [], []  # nobody knows when they lie: they are discarded
        if starts:
            worker.latest_us = max(worker.latest_us, self.us - self.jumped_us + grant.starts_us[-1])
            worker.heaviest = max([worker.heaviest, *(weight for weight, *_ in request.costs[: len(starts)])])
            worker.starts_us += starts
        return Reply(
            now_us=now,
            boot=grant.boot,
            by=grant.by,
            again_in_us=grant.again_us,
            pause_us=grant.pause_us,
            reason=grant.pause_reason,
            guard_us=grant.guard_us,
            starts_us=starts,
            keys=keys_used,
            scopes=[(left_us, reason) for left_us, reason in grant.scopes],
            before=before,
            after=after,
        )

    @property
    def real_us(self) -> int:
        """The time that has really passed, whatever TIME shows."""
        return self.us - self.jumped_us

    def _watch(self, worker: Worker, now: int, known_boot: str) -> None:
        """Let a worker see a clock that was set ahead, as ``RedisClock`` does."""
        ahead, before = now - self.real_us, worker.ahead_us
        if worker.boot != known_boot:
            before = None
        worker.stepped = self.watchful and before is not None and ahead > before
        worker.ahead_us = ahead

    def used(self, index: int = 0) -> int:
        """Return what the quota at this place in the limits has counted."""
        fields = self.redis.hgetall(self.limit_keys[index])
        counted = sum(int(count) for bucket, count in fields.items() if bucket.isdigit())
        assert counted == int(fields.get("total", 0)), "the sum that is kept differs from what the buckets hold"
        return counted

    def pause(self, us: int, reason: str = "429", scope: str = "", said_us: int = 0) -> int:
        """Pause the API, or one of its keys or models, as was said so long ago; return what is left of the pause."""
        call = scripts.PAUSE.call(
            scripts.PauseKeys(self.keys.meta, self.keys.paused, self.limit_keys),
            scripts.PauseArguments(pause_us=us, said_us=said_us, reason=reason, channel=self.keys.channel, scope=scope),
        )
        left: int = self._run(call)[1]
        return left

    def refused(self, age_us: int = 0, *, in_a_row: int = 1, taken: int = 0) -> int:
        """Tell of a refusal of a call that started so long ago; return 1 if something was changed, else 0.

        ``taken``: calls that the API took and that nobody told of yet.
        """
        permits = self.keys.permits()
        call = scripts.REFUSED.call(
            scripts.RefusedKeys(meta=self.keys.meta, permits=permits.meta, in_use=permits.used, limits=self.limit_keys),
            scripts.RefusedArguments(
                worker="",
                channel=self.keys.channel,
                started_us=age_us,
                refused_us=0,
                in_flight=0,
                permits=0,
                taken_per_s=0.0,
                what="",
                begins=0,
                fastest=0.0,
                in_a_row=in_a_row,
                taken=taken,
                crowded=False,
                asked_us=0,
                wanted=False,
            ),
        )
        changed: int = self._run(call)[1]
        return min(changed, 1)

    def restore(self, keys: Sequence[str], boot: str, grants: Sequence[scripts.ToldGrant]) -> int:
        """Bring back what was granted of quotas; return whether it was counted."""
        call = scripts.RESTORE.call(
            scripts.RestoreKeys(self.keys.meta, keys), scripts.RestoreArguments(boot=boot, grants=grants)
        )
        counted: int = self._run(call)[1]
        return counted

    def feed(
        self, index: int, kind: Literal["slow", "block", "aligned", "most"], first: float, second: float = 0.0
    ) -> int:
        """Tell a fact about the limit at this place; return whether something was changed."""
        fact = scripts.ToldFact(limit=1, kind=kind, first=first, second=second)
        call = scripts.FEED.call(
            scripts.FeedKeys(self.keys.meta, [self.limit_keys[index]]),
            scripts.FeedArguments(channel=self.keys.channel, facts=[fact]),
        )
        changed: int = self._run(call)[1]
        return changed

    def permits(self, worker: str, want: int, used: int, had: int, *, limit: int, lease_us: int) -> Lease:
        """Renew a lease of permits."""
        told = scripts.LeaseArguments(
            worker=worker,
            want=want,
            used=used,
            held=had,
            lease_us=lease_us,
            limit=limit,
            channel=self.keys.channel,
            answers=None,
        )
        call = scripts.PERMITS.call(scripts.LeaseKeys(self.keys.meta), told, self.keys.permits())
        return Lease(*self._run(call)[1])

    def warm(self) -> Worker:
        """Let a first worker get over the cold start and return it."""
        worker = Worker("first")
        self.reserve(worker, 0)
        self.set_time(self.us + 2 * LONGEST_COLD_WAIT_US)
        return worker

    def run(
        self,
        workers: Sequence[Worker],
        seconds: float,
        *,
        calls: Sequence[int],
        tokens: int = 0,
        leave: dict[int, float] | None = None,
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
            self.reserve(workers[index], calls[index], (tokens,) * calls[index] if tokens else ())
            heapq.heappush(due, (max(workers[index].again_us, at + 500), index))


def _columns(weight: int, tokens: int) -> Columns:
    return weight, tokens, tokens, 0


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
