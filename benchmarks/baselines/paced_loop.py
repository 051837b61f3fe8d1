"""What a paced call costs without any queue: aiohttp on uvloop, one start every 1/RATE seconds.

``python -m baselines.paced_loop RATE SECONDS WARM_UP_SECONDS URL`` prints ``{"calls_per_s", "cpu_us"}`` as
``bare_loop`` does. A process that calls seldom mostly wakes up and falls asleep, so its calls cost more each: a worker
at its limit is to be held against a loop of the same pace.
"""

from __future__ import annotations

import asyncio
import json
import sys

import uvloop
from baselines.bare_loop import Call, Stopwatch, aiohttp_call


async def make_paced(call: Call, rate: float, seconds: float) -> dict[str, float]:
    """Make the calls of so many seconds, each at its time, whether those before it have ended or not."""
    calls = int(rate * seconds)
    now = asyncio.get_running_loop().time
    began_s, stopwatch = now(), Stopwatch()
    async with asyncio.TaskGroup() as running:
        for number in range(calls):
            if (wait_s := began_s + number / rate - now()) > 0:
                await asyncio.sleep(wait_s)
            running.create_task(call(number))
    return stopwatch.report(calls)


async def main(rate: float, seconds: float, warm_up_s: float, url: str) -> dict[str, float]:
    """Make calls that are not counted, so that connections are open, then those that are."""
    async with aiohttp_call(url) as call:
        await make_paced(call, rate, warm_up_s)
        return await make_paced(call, rate, seconds)


if __name__ == "__main__":
    rate, seconds, warm_up_s = map(float, sys.argv[1:4])
    print(json.dumps(uvloop.run(main(rate, seconds, warm_up_s, sys.argv[4]))))
