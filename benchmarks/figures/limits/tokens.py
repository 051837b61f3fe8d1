"""A limit of tokens per minute, and calls whose cost is only known from their answers."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator

from figure import Figure
from figures.limits.arena import Api, Arena, Server
from figures.limits.at_limit import PATH
from figures.limits.call_times import heaviest_window, read_calls
from figures.limits.scale import LimitScale

from callmill.producer import Job
from callmill.simulator import HeaderStyle, SimulatorOptions
from callmill.simulator.latency import parse_latency

_PER_MINUTE = 600_000
_MEAN = 1_000
_MOST = 12_000
_WINDOW_S = 60
_SETTLING_S = 10.0
_IDLE_S = 3.0
_CHARACTERS_PER_TOKEN = 4
_SPARE = 2_000
"""Jobs beyond those that are needed: every worker has a chunk until the end."""

_SERVER = SimulatorOptions(latency=parse_latency("lognormal:2s,p99=6s"), headers=HeaderStyle.NONE)
_PROFILE = {"limits": [f"{_PER_MINUTE} tokens/minute"], "enforcer": "sliding", "usage": "/usage/total_tokens"}


def measure(scale: LimitScale) -> Iterator[Figure]:
    """Let as many APIs as runs are wanted work side by side, the jobs told their mean cost or nothing."""
    apis = [f"{told}-{number}" for told in ("given", "learned") for number in range(scale.runs)]
    with Arena({name: Api(_SERVER, _PROFILE) for name in apis}) as arena:
        count = round(_PER_MINUTE / _MEAN * scale.tokens_s / 60) + _SPARE
        batches = [arena.client.submit(_jobs(name, count), name=name) for name in apis]
        time.sleep(scale.tokens_s)
        for batch in batches:
            batch.cancel()
        for name in apis:
            arena.servers[name].await_idle(_IDLE_S)
        seen = {name: _used_and_overrun(arena.servers[name], scale.tokens_s - _SETTLING_S) for name in apis}
    yield from _figures(
        "the mean is given as estimate", [seen[name] for name in apis if name.startswith("given")], scale.tokens_s
    )
    yield from _figures(
        "estimates learned", [seen[name] for name in apis if name.startswith("learned")], scale.tokens_s
    )


def _jobs(api: str, count: int) -> Iterator[Job]:
    """Yield jobs whose cost is drawn from the exponential distribution: its deviation is its mean."""
    for _ in range(count):
        cost = min(_MOST, max(2, math.ceil(random.expovariate(1 / _MEAN))))
        # The answer repeats the question, so each has half of the tokens.
        body = {"model": "small", "messages": [{"role": "user", "content": "x" * (cost // 2 * _CHARACTERS_PER_TOKEN)}]}
        headers = {"x-simulator-tokens": str(cost // 2 * 2)}
        tokens = _MEAN if api.startswith("given") else None
        yield Job("POST", PATH, api=api, json=body, headers=headers, tokens=tokens)


def _used_and_overrun(server: Server, seconds: float) -> tuple[float, float]:
    calls = read_calls(server.log)
    begin_s = calls.accepted_s[0] + _SETTLING_S
    end_s = min(begin_s + seconds - _SETTLING_S, calls.accepted_s[-1])
    used = calls.tokens_between(begin_s, end_s) / (_PER_MINUTE / _WINDOW_S * (end_s - begin_s))
    return used * 100, (heaviest_window(calls.accepted_s, calls.tokens, _WINDOW_S) / _PER_MINUTE - 1) * 100


def _figures(how: str, seen: list[tuple[float, float]], seconds: float) -> Iterator[Figure]:
    yield Figure(
        name=f"tokens/minute used, {how}",
        unit="%",
        runs=tuple(used for used, _ in seen),
        better="higher",
        must=95,
        note=f"{_PER_MINUTE:,} a minute, costs of {_MEAN:,} on average (cv 1), answers after 2 s",
    )
    if seconds >= 2 * _WINDOW_S:
        yield Figure(
            name=f"largest overrun in {_WINDOW_S} s, {how}", unit="%", runs=tuple(over for _, over in seen), must=5
        )
