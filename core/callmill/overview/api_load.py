"""The load of APIs, from what the overview knows of them: what waits, what limits allow, what a call takes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import inf

from msgspec.structs import replace

from callmill.config.limit_spec import AUTO, LimitSpec, Scope, Unit, parse_limit
from callmill.ledger.fleet import FAR_S, FarStart, WorkerStatus, pause_in_words, span_in_words
from callmill.limits.rules import FIRST_GUESS_PER_S, SHORTEST_QUOTA_S
from callmill.overview.api_now import ApiNow
from callmill.overview.api_view import ApiView
from callmill.overview.backlog import ApiBacklog, Backlog
from callmill.overview.traffic import ApiTraffic
from callmill.overview.workers_wanted import ApiLoad, FleetLoad

_TRIED_BEYOND = 1.5
"""How much faster than now an API may turn out to be whose limit is being searched for."""

_NONE = ApiBacklog()


def fleet_load(
    views: Sequence[ApiView], workers: Sequence[WorkerStatus], backlog: Backlog, far_starts: Mapping[str, FarStart]
) -> FleetLoad:
    """Return the load of a fleet; ``far_starts``: what the last workers knew of quotas that are spent."""
    working = [worker for worker in workers if not worker.draining]
    loads = {
        view.now.api: _api_load(view, working, backlog.apis.get(view.now.api, _NONE), far_starts.get(view.now.api))
        for view in views
    }
    for view in views:
        _divert(loads, view.now)
    calls_per_s = sum(worker.calls_per_s for worker in working)
    cpu_us = sum(worker.calls_per_s * (worker.cpu_us_per_call or 0.0) for worker in working)
    upkeep = backlog.upkeep
    if not views and backlog.unfinished:
        upkeep = "no worker ever ran: the first one tells which APIs there are"
    return FleetLoad(
        apis=list(loads.values()),
        workers=len(working),
        calls_per_s=calls_per_s,
        cpu_us_per_call=cpu_us / calls_per_s if calls_per_s else None,
        upkeep=upkeep,
        hold=next((worker.held for worker in working if worker.held), ""),
    )


def _api_load(
    view: ApiView, workers: Sequence[WorkerStatus], backlog: ApiBacklog, far_start: FarStart | None
) -> ApiLoad:
    now = view.now
    latency_s = view.traffic.now.mean_latency_s or _mean_ever_s(view.traffic)
    per_s, limit, calls_at_once = _limits(now, view.traffic)
    return ApiLoad(
        api=now.api,
        waiting=now.waiting + backlog.queued_jobs + backlog.due_jobs,
        in_flight=now.in_flight,
        held=backlog.leased_chunks > 0,
        takeable=backlog.due_jobs > 0 or backlog.queued_chunks > _fetched(now, workers),
        calls_per_s=now.rate or (now.in_flight / latency_s if latency_s else 0.0),
        latency_s=latency_s,
        limit_per_s=per_s,
        limit=limit,
        calls_at_once=calls_at_once,
        room=_room(now.api, workers, backlog.jobs_per_chunk),
        stopped=_stopped(now, far_start),
        down=now.down if now.breaker != "closed" else "",
    )


def _divert(loads: dict[str, ApiLoad], now: ApiNow) -> None:
    """Let an API that serves another's calls have what waits for that one."""
    if now.diverted_to in loads:
        load, other = loads[now.api], loads[now.diverted_to]
        loads[now.diverted_to] = replace(other, waiting=other.waiting + load.waiting)
        loads[now.api] = replace(load, waiting=0.0)


def _fetched(now: ApiNow, workers: Sequence[WorkerStatus]) -> int:
    """Return how many queued chunks workers may have fetched already; of an API that limits pace, none to speak of."""
    if any(parse_limit(text).unit is not Unit.CONCURRENT for text in now.limits):
        return 0
    return sum(worker.chunks_at_once or 0 for worker in workers if now.api in worker.apis)


def _mean_ever_s(traffic: ApiTraffic) -> float | None:
    calls = sum(traffic.total.latency_buckets.values())
    return traffic.total.latency_s / calls if calls else None


def _room(api: str, workers: Sequence[WorkerStatus], jobs_per_chunk: float | None) -> float | None:
    """Return how many calls of an API a process has under way at once: its bound, or what its chunks hold."""
    rooms = []
    for worker in workers:
        for lane in worker.lanes:
            if lane.api == api and lane.most_in_flight is not None:
                by_chunks = inf
                if worker.chunks_at_once is not None and jobs_per_chunk is not None:
                    by_chunks = worker.chunks_at_once * max(1.0, jobs_per_chunk)
                rooms.append(min(lane.most_in_flight, by_chunks))
    return sum(rooms) / len(rooms) if rooms else None


def _limits(now: ApiNow, traffic: ApiTraffic) -> tuple[float | None, str, int | None]:
    """Return the calls per second that the tightest limit grants, that limit, and the calls at once."""
    per_s, at_once = dict[str, float](), list[int]()
    keys = max(1, sum(key.paused_s == 0 for key in now.keys))
    for text, bound in zip(now.limits, now.bounds, strict=True):
        spec = parse_limit(text)
        owners = {Scope.API: 1, Scope.KEY: keys, Scope.MODEL: 0}[spec.scope]
        if spec == AUTO:
            per_s[text] = max(FIRST_GUESS_PER_S, _TRIED_BEYOND * now.rate)
        elif not owners:
            continue  # how many models are called, nobody counts
        elif spec.unit is Unit.CONCURRENT:
            at_once.append(spec.amount * owners)
        elif (units_per_call := _units_per_call(spec, traffic)) and spec.window_s < SHORTEST_QUOTA_S:
            pace = spec.amount / spec.window_s if bound.pace_per_s is None else bound.pace_per_s
            per_s[text] = pace * owners / units_per_call
    tightest = min(per_s, key=lambda text: per_s[text], default="")
    return per_s.get(tightest), tightest, min(at_once, default=None)


def _units_per_call(spec: LimitSpec, traffic: ApiTraffic) -> float | None:
    """Return how many of a limit's units a call takes; None where that cannot be told."""
    if spec.unit is Unit.REQUESTS:
        return 1.0
    if spec.unit is not Unit.TOKENS:  # input and output are not counted apart
        return None
    counted = traffic.now if traffic.now.calls else traffic.total
    return counted.tokens / counted.calls if counted.tokens and counted.calls else None


def _stopped(now: ApiNow, far_start: FarStart | None) -> str:
    """Say why no call may start for long; empty: one may soon."""
    if now.held:
        return now.held.removeprefix(f"{now.api} is ")
    if now.paused_s is None or now.paused_s > FAR_S:
        until = pause_in_words(inf if now.paused_s is None else now.paused_s)
        return f"paused {until}: {now.pause_reason or 'no reason given'}"
    if now.keys and all(key.paused_s is None or key.paused_s > FAR_S for key in now.keys):
        return "without a credential: all are set aside"
    if (now.next_start_s or 0.0) > FAR_S:
        return _spent(now.limited_by, now.next_start_s or 0.0)
    # With nothing waiting in a worker, nobody knows better than the last one that did.
    if now.next_start_s is None and far_start and far_start.start_in_s > FAR_S and _holds(far_start, now):
        return _spent(far_start.limit, far_start.start_in_s)
    return ""


def _holds(far_start: FarStart, now: ApiNow) -> bool:
    return far_start.generation == now.generation and _known(far_start.limit, now.limits)


def _known(limit: str, limits: Collection[str]) -> bool:
    return not limit or limit in limits


def _spent(limit: str | None, start_in_s: float) -> str:
    return f"spent ({limit or 'a quota'}): the next call starts in {span_in_words(start_in_s)}"
