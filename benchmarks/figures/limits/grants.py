"""How many slots one Redis grants to eight processes that do nothing but take them.

``python -m figures.limits.grants "URL SECONDS"`` is one of the processes: exchanges of full blocks, one after the
other, decoded into slots.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import msgspec
import uvloop
from figure import Figure
from figures.limits.arena import WORKERS
from figures.limits.scale import LimitScale
from figures.limits.together import begin_together, run_together
from msgspec import Struct
from proc import cpu_s
from redis.asyncio import Redis
from redis_server import RedisServer

from callmill.config.limit_spec import Enforcer, parse_limit
from callmill.jobs.traffic import NORMAL
from callmill.limits import LimitRules, Slot
from callmill.limits.layout import Layout, layout
from callmill.limits.refill import MOST_CALLS
from callmill.limits.store import Grant, LimitStore, Request

_LIMIT = "10000000/second"
_LEAD_US = 3_000
_GUARD_US = 10_000
_LONG_AGO_US = -10_000_000_000


class Taken(Struct, frozen=True):
    """What one process got: slots, exchanges, and its CPU seconds."""

    slots: int
    exchanges: int
    cpu_s: float


def measure(scale: LimitScale) -> Iterator[Figure]:
    """Let all processes take slots for some seconds."""
    runs = [_run(scale.short_s) for _ in range(scale.runs)]
    yield Figure(
        name="slots granted by one Redis",
        unit="/s",
        runs=tuple(per_s for per_s, _ in runs),
        better="higher",
        must=300_000,
        aim=1_000_000,
        note=runs[-1][1],
    )


def _run(seconds: float) -> tuple[float, str]:
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder)) as server:
        told = msgspec.convert(
            run_together("figures.limits.grants", [f"{server.url} {seconds}"] * WORKERS, server.url), list[Taken]
        )
        redis_cpu = cpu_s(server.child.pid) / seconds
    slots, exchanges = sum(taken.slots for taken in told), sum(taken.exchanges for taken in told)
    each_cpu = max(taken.cpu_s for taken in told) / seconds
    per_exchange = (
        f"{slots / exchanges:.0f} slots an exchange, {redis_cpu / slots * seconds * 1e6:.2f} us of Redis each"
    )
    return slots / seconds, f"{per_exchange}; CPU: Redis {redis_cpu:.0%}, a process {each_cpu:.0%}"


async def take_slots(url: str, seconds: float) -> Taken:
    """Take slots until the time is over."""
    async with Redis.from_url(url, socket_timeout=2) as redis:
        store = LimitStore(redis, "bench", f"process-{os.getpid()}")
        limits = layout(LimitRules((parse_limit(_LIMIT),), Enforcer.SLIDING), store.keys, "", NORMAL)
        await store.publish_rules(limits)
        grant = await store.reserve(limits, _request(None, limits, calls=0))
        taken = exchanges = 0
        end_s, used_s = await begin_together(redis) + seconds, _cpu_s()
        while monotonic() < end_s:
            grant = await store.reserve(limits, _request(grant, limits, calls=MOST_CALLS))
            here_s = monotonic()
            slots = [
                Slot(here_s + start_us / 1e6, key=key - 1)
                for start_us, key in zip(grant.starts_us, grant.keys, strict=True)
            ]
            taken, exchanges = taken + len(slots), exchanges + 1
        return Taken(taken, exchanges, _cpu_s() - used_s)


def _request(last: Grant | None, limits: Layout, *, calls: int) -> Request:
    return Request(
        boot=last.boot if last else "",
        seq=last.seq if last else 0,
        latest_us=last.starts_us[-1] if last and last.starts_us else _LONG_AGO_US,
        lead_us=_LEAD_US,
        guard_us=_GUARD_US,
        allowances=[calls] * limits.key_count,
        calls=calls,
    )


def _cpu_s() -> float:
    return sum(os.times()[:2])


if __name__ == "__main__":
    given_url, given_seconds = sys.argv[1].split()
    sys.stdout.buffer.write(msgspec.json.encode(uvloop.run(take_slots(given_url, float(given_seconds)))))
