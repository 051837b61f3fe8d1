"""One process that calls as fast as its limiter lets it, and tells when each call started.

Arguments: Redis URL, enforcer, burst, seconds, callers, limits. Prints ``ready``, waits for a line, runs, prints JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from time import monotonic

import uvloop
from redis.asyncio import Redis

from callmill.config.limit_spec import Enforcer, parse_limit
from callmill.limits import Limiter, LimitRules


async def main(url: str, enforcer: str, burst: str, seconds: str, callers: str, *limits: str) -> None:
    """Run the limiter with endless demand and report."""
    redis = Redis.from_url(url, socket_timeout=2)
    rules = LimitRules(tuple(parse_limit(text) for text in limits), Enforcer(enforcer), int(burst))
    limiter = Limiter(redis, "api", rules, worker=f"process-{os.getpid()}")
    await limiter.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.readline)
    fired: list[float] = []
    in_flight: list[tuple[float, int]] = []

    async def call() -> None:
        while True:
            slot = await limiter.acquire()
            fired.append(monotonic())
            if limiter.status().permits is not None:
                in_flight.append((monotonic(), 1))
                await asyncio.sleep(0.02)
                in_flight.append((monotonic(), -1))
            limiter.settle(slot, None)

    tasks = [asyncio.create_task(call()) for _ in range(int(callers))]
    await asyncio.sleep(float(seconds))
    status = limiter.status()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    figures = {"granted": status.granted, "missed": status.slots_missed, "round_trips": status.round_trips}
    sys.stdout.write(json.dumps({"fired": fired, "in_flight": in_flight, "guard_s": status.guard_s, **figures}) + "\n")
    sys.stdout.flush()
    await limiter.aclose()
    await redis.aclose()


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
