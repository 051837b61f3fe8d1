"""How much of a limit three processes use, and what its server would have counted.

    python benchmarks/limits_share.py [--seconds 20]

Prints, for each limit: the share that was granted and the share that was used (the difference is what this host was too
late for), the worst window against the limit, exchanges with Redis per call, CPU time per call, the guard.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic, process_time

import uvloop
from redis.asyncio import Redis
from redis_server import flush, redis_server

from callmill.config.limit_spec import Enforcer, parse_limit
from callmill.limits import Limiter, LimitRules

CASES = (
    ("100/second", "sliding", 1),
    ("1000/second", "sliding", 1),
    ("6000/minute", "sliding", 1),
    ("100/second", "bucket", 20),
    ("1000/second", "bucket", 20),
)
PROCESSES = 3
CALLERS = 200
WARM_S = 2.0


async def call(url: str, limit: str, enforcer: str, burst: str, seconds: str) -> None:
    """One process: call as fast as the limiter lets it, then tell when."""
    fired: list[float] = []
    async with Redis.from_url(url, socket_timeout=2) as redis:
        rules = LimitRules((parse_limit(limit),), Enforcer(enforcer), int(burst))
        limiter = Limiter(redis, "share", rules, worker=f"process-{os.getpid()}")
        await limiter.start()

        async def caller() -> None:
            while True:
                slot = await limiter.acquire()
                fired.append(monotonic())
                limiter.settle(slot, None)

        callers = [asyncio.create_task(caller()) for _ in range(CALLERS)]
        await asyncio.sleep(WARM_S)
        before, cpu_s, begin = limiter.status(), process_time(), monotonic()
        await asyncio.sleep(float(seconds))
        after, cpu_s, end = limiter.status(), process_time() - cpu_s, monotonic()
        for task in callers:
            task.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        await limiter.aclose()
    figures = {
        "granted": after.granted - before.granted,
        "missed": after.slots_missed - before.slots_missed,
        "round_trips": after.round_trips - before.round_trips,
        "guard_s": after.guard_s,
        "cpu_s": cpu_s,
        "begin": begin,
        "end": end,
    }
    sys.stdout.write(json.dumps({"fired": fired, **figures}))


def measure(limit: str, enforcer: str, burst: int, seconds: float) -> str:
    """Run one case and return its line."""
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as url:
        flush(url)
        arguments = [sys.executable, __file__, "--child", url, limit, enforcer, str(burst), str(seconds)]
        children = [subprocess.Popen(arguments, stdout=subprocess.PIPE) for _ in range(PROCESSES)]
        reports = [json.loads(child.communicate(timeout=seconds + 60)[0]) for child in children]
    spec = parse_limit(limit)
    begin, end = max(report["begin"] for report in reports), min(report["end"] for report in reports)
    fired = sorted(at for report in reports for at in report["fired"])
    used = sum(begin <= at < end for at in fired)
    allowed = spec.amount / spec.window_s * (end - begin)
    missed, granted, trips, cpu_s = (sum(report[name] for report in reports) for name in TOTALS)
    guard_ms = 1000 * max(report["guard_s"] for report in reports)
    return (
        f"{limit:<12} {enforcer:<8} {100 * used / allowed:>7.2f} {100 * (used + missed) / allowed:>10.2f} "
        f"{worst_window(fired, spec.window_s):>7}/{spec.amount:<5} {missed:>6} {trips / granted:>9.3f} "
        f"{1e6 * cpu_s / granted:>8.0f} {guard_ms:>6.1f}"
    )


TOTALS = ("missed", "granted", "round_trips", "cpu_s")
HEADER = "limit        enforcer  used % + missed %  worst/limit  missed trips/call  CPU us  guard ms"


def worst_window(fired: list[float], window_s: float) -> int:
    """Return the most calls that started within any window."""
    worst, first = 0, 0
    for last, at in enumerate(fired):
        while fired[first] <= at - window_s:
            first += 1
        worst = max(worst, last - first + 1)
    return worst


def main() -> None:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each measurement")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        uvloop.run(call(*options.child))
        return
    print(HEADER)
    for limit, enforcer, burst in CASES:
        print(measure(limit, enforcer, burst, options.seconds), flush=True)


if __name__ == "__main__":
    main()
