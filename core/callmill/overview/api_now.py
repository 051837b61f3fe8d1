"""ApiNow: an API, what people have set for it, and its lanes summed up over all workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct
from redis.asyncio import Redis

from callmill.config.limit_spec import AUTO, Enforcer, LimitSpec, Scope, Unit, parse_limit
from callmill.config.public_api import PublicApi
from callmill.holds import Held, current_holds, held_in_words
from callmill.ledger.fleet import KeyStatus, LaneStatus, WorkerStatus
from callmill.limits.bound import Bound, Guard, bounds, measured
from callmill.limits.control import ControlState, LimitControl, Pause
from callmill.limits.rules import SHORTEST_QUOTA_S, KeyRules, LimitRules, fixed_guard_s


class LimitNow(Struct, frozen=True, kw_only=True):
    """One limit that holds.

    Attributes:
        usable: Share of it that can be used without ever breaking it; None: not known, as nobody has measured.
        pace_per_s: Units per second that are granted at most; None where nothing is paced, or not known.
        used: Share of it that was granted over the last seconds; None where calls are not what it counts.
        why: In words, why not all of it is usable; None where there is nothing to say.
    """

    limit: str
    usable: float | None
    pace_per_s: float | None
    used: float | None
    why: str | None


class LearnedNow(Struct, frozen=True, kw_only=True):
    """What was learned of a limit: the words before and after the time since when it is known (Unix time in s)."""

    words: str
    since_s: float
    more: str


class KeyNow(Struct, frozen=True, kw_only=True):
    """One credential of an API; ``paused_s``: 0 in use, None set aside until resumed."""

    name: str
    paused_s: float | None
    reason: str | None
    by: str | None


class ApiNow(Struct, frozen=True, kw_only=True):
    """An API as it is now.

    Attributes:
        limits: Those that hold: the profile's, or those set at run time.
        profile_limits: The profile's, where others were set at run time.
        generation: The change of limits at run time that holds; 0: none was made.
        adopted: Workers that keep the limits that hold.
        rate: Calls per second granted over the last seconds.
        next_start_s: Seconds until the next call may start; None when nothing waits.
        permits: Concurrency permits held; None without such a limit.
        paused_s: Seconds that it stays paused; 0: it is not; None: until resumed.
        paused_by: Who paused it; None where an answer of the API did.
        breaker: Whether it is up, as the workers know it: closed, open or half-open.
        down: That it is down, why, and when it is tried again; empty while it is up.
        retries_held: Retries that wait for the retry budget.
        diverted_to: The API that serves its calls now; None: itself.
        held: Why no call starts until someone acts, and what to do; empty: calls may start.
        guard: The timing uncertainty that is allowed for; None: nobody has measured.
        learned: What its answers showed of its limits.
    """

    api: str
    base_url: str
    limits: tuple[str, ...]
    profile_limits: tuple[str, ...] | None
    enforcer: str
    burst: int
    workers: int
    generation: int
    adopted: int
    in_flight: int
    waiting: int
    rate: float
    next_start_s: float | None
    permits: int | None
    slots_missed: int
    limited_by: str | None
    paused_s: float | None
    pause_reason: str | None
    paused_by: str | None
    breaker: str
    down: str
    retries_held: int
    diverted_to: str | None
    held: str
    guard: Guard | None
    bounds: list[LimitNow]
    keys: list[KeyNow]
    learned: list[LearnedNow]

    @property
    def paused(self) -> bool:
        """Whether no call starts."""
        return self.paused_s != 0


async def api_now(api: PublicApi, redis: Redis, workers: Sequence[WorkerStatus]) -> ApiNow:
    """Look at what is set in the limiter's Redis, and sum the lanes up.

    Raises:
        RedisUnavailableError: Redis cannot be reached or refused.
        UnknownFormatError: A newer Callmill wrote the limits.
    """
    state, (holds,) = await LimitControl(redis, api.limiter).current(), await current_holds(redis, [api.limiter])
    return summed_up(api, state, workers, holds)


def summed_up(
    api: PublicApi, state: ControlState, workers: Sequence[WorkerStatus], holds: Mapping[str, Held]
) -> ApiNow:
    """Return the API with its settings, its holds and the sum of its lanes."""
    lanes = [lane for worker in workers if worker.means(api) for lane in worker.lanes if lane.api == api.name]
    specs = tuple(map(parse_limit, api.limits)) if state.limits is None else state.limits
    known = api.enforcer in set(Enforcer)
    enforcer = Enforcer(api.enforcer) if known else Enforcer.UNKNOWN
    rules = LimitRules(specs, enforcer, api.burst, quantum_s=api.quantum)
    guard, rate = _guard(rules, lanes), sum(lane.rate for lane in lanes)
    held = holds[""].line if "" in holds else next((lane.held for lane in lanes if lane.held), "")
    pause = state.pause or _told_pause(lanes) or Pause(0.0, "", None)
    return ApiNow(
        api=api.name,
        base_url=api.base_url,
        limits=tuple(map(str, specs)),
        profile_limits=None if state.limits is None else api.limits,
        enforcer=api.enforcer,
        burst=api.burst,
        workers=len(lanes),
        generation=state.generation,
        adopted=sum(lane.limits_generation >= state.generation for lane in lanes),
        in_flight=sum(lane.in_flight for lane in lanes),
        waiting=sum(lane.waiting for lane in lanes),
        rate=rate,
        next_start_s=min((lane.next_start_s for lane in lanes if lane.next_start_s is not None), default=None),
        permits=_total([lane.permits for lane in lanes if lane.permits is not None]),
        slots_missed=sum(lane.slots_missed for lane in lanes),
        limited_by=next((lane.limited_by for lane in lanes if lane.limited_by), None),
        paused_s=pause.left_s,
        pause_reason=pause.reason or None,
        paused_by=pause.by,
        breaker=next((lane.breaker for lane in lanes if lane.breaker != "closed"), "closed"),
        down=next((lane.down_in_words for lane in lanes if lane.down_in_words), ""),
        retries_held=sum(lane.retries_held for lane in lanes),
        diverted_to=next((lane.diverted_to for lane in lanes if lane.diverted_to), None),
        held=held_in_words(api.name, held),
        guard=guard,
        bounds=[_limit_now(bound, rate, lanes) for bound in _bounds(rules, guard)],
        keys=_keys(lanes, state, holds),
        learned=[
            LearnedNow(words=words, since_s=found.since.timestamp(), more=more)
            for found in state.learned
            for words, more in [found.in_words(api.name, specs)]
        ],
    )


def _guard(rules: LimitRules, lanes: Sequence[LaneStatus]) -> Guard | None:
    fixed_s = fixed_guard_s(rules)
    if fixed_s is not None:
        return measured(rules, fixed_s, 0.0, 0.0)
    told = [lane for lane in lanes if lane.guard_s > 0]
    if not told:
        return None
    worst = max(told, key=lambda lane: lane.lateness_s + lane.way_s)
    return measured(rules, max(lane.guard_s for lane in told), worst.lateness_s, worst.way_s)


def _bounds(rules: LimitRules, guard: Guard | None) -> tuple[Bound, ...]:
    if guard is not None:
        return bounds(rules, guard, quantum_s=rules.quantum_s)
    unmeasured = bounds(rules, Guard(0.0))
    return tuple(bound if _is_whole(bound.limit) else Bound(bound.limit, None, None, bound.why) for bound in unmeasured)


def _is_whole(spec: LimitSpec) -> bool:
    # What a guard changes nothing of can be told without one.
    return spec.unit is Unit.CONCURRENT or spec.window_s >= SHORTEST_QUOTA_S


def _limit_now(bound: Bound, rate: float, lanes: Sequence[LaneStatus]) -> LimitNow:
    spec, used = bound.limit, None
    counts_calls = spec.unit is Unit.REQUESTS and spec.scope is Scope.API and spec.window_s < SHORTEST_QUOTA_S
    if lanes and counts_calls and spec != AUTO:
        used = rate * spec.window_s / spec.amount
    return LimitNow(limit=str(spec), usable=bound.usable, pace_per_s=bound.pace_per_s, used=used, why=bound.why)


def _told_pause(lanes: Sequence[LaneStatus]) -> Pause | None:
    longest = max(lanes, key=lambda lane: lane.paused_s, default=None)
    if longest is None or longest.paused_s <= 0:
        return None
    return Pause(longest.paused_s, longest.pause_reason or "", None)


def _keys(lanes: Sequence[LaneStatus], state: ControlState, holds: Mapping[str, Held]) -> list[KeyNow]:
    longest: dict[str, KeyStatus] = {}
    for key in (key for lane in lanes for key in lane.keys):
        if key.name not in longest or key.paused_s > longest[key.name].paused_s:
            longest[key.name] = key
    rows = {name: KeyNow(name=name, paused_s=key.paused_s, reason=key.reason, by=None) for name, key in longest.items()}
    for name, pause in state.keys.items():
        rows[name] = KeyNow(name=name, paused_s=pause.left_s, reason=pause.reason or None, by=pause.by)
    for subject, held in holds.items():
        kind, _, name = subject.partition(":")
        if kind == "key" and (name in rows or name != KeyRules().name):  # one without a name is not one of several
            rows[name] = KeyNow(name=name, paused_s=None, reason=held.line, by=None)
    return [rows[name] for name in sorted(rows)]


def _total(values: Sequence[int]) -> int | None:
    return sum(values) if values else None
