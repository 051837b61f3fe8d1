"""Redis restarted empty while calls are made at full rate."""

from __future__ import annotations

import time
from collections.abc import Iterator

from figure import Figure
from figures.limits.arena import Api, Arena
from figures.limits.at_limit import PATH
from figures.limits.call_times import Calls, read_calls
from figures.limits.cases import Case
from figures.limits.scale import LimitScale
from workload import jobs

from callmill.simulator import EnforcerKind

_BEFORE_S = 4.0
_AFTER_S = 8.0
_FULL = 0.97
"""Share of the rate before that counts as full again."""

_STEP_S = 0.02
_CASE = Case(EnforcerKind.SLIDING, 1000)


def measure(scale: LimitScale) -> Iterator[Figure]:
    """End the limiter's Redis with kill -9, start it without anything, and watch the calls."""
    with Arena({_CASE.api: Api(_CASE.server(), _CASE.profile())}) as arena:
        count = round(_CASE.rate * (scale.restarts * (_BEFORE_S + _AFTER_S) + 2 * _BEFORE_S))
        batch = arena.client.submit(jobs(count, PATH, api=_CASE.api), name="restarts")
        server, events = arena.servers[_CASE.api], []
        time.sleep(_BEFORE_S)
        for _ in range(scale.restarts):
            time.sleep(_BEFORE_S)
            killed_s = time.time()
            arena.limiter_redis.restart_empty()
            events.append((killed_s, time.time()))
            time.sleep(_AFTER_S)
        batch.cancel()
        server.await_idle(1.5)
        calls = read_calls(server.log)
    yield Figure(name="429s, Redis restarted empty", unit="calls", runs=(calls.refused,), must=0, aim=0)
    yield Figure(
        name="back at full rate after Redis is back",
        unit="s",
        runs=tuple(_back_s(calls, killed_s, back_s) for killed_s, back_s in events),
        must=2,
        note=f"{_CASE.name}; away for {max(back_s - killed_s for killed_s, back_s in events):.2f} s",
    )


def _back_s(calls: Calls, killed_s: float, back_s: float) -> float:
    """Return the time from Redis being there to the first second with the rate of before."""
    rate = calls.between(killed_s - 2, killed_s) / 2
    at_s = back_s
    while calls.between(at_s, at_s + 1) < _FULL * rate and at_s < back_s + _AFTER_S:
        at_s += _STEP_S
    return at_s - back_s
