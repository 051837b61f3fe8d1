"""One program of its own that calls as fast as its limiter lets it: asyncio, or threads.

Arguments: Redis URL, ``asyncio`` or ``threads``, seconds, limits. Prints ``ready``, waits for a line, prints when its
calls started as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from time import monotonic

from callmill.limits import BlockingLimiter, open_limiter

CALLERS = 12


async def run_asyncio(url: str, seconds: float, limits: list[str]) -> list[float]:
    """Call with tasks."""
    starts: list[float] = []

    async def call() -> None:
        while True:
            async with limiter.slot():
                starts.append(monotonic())

    async with open_limiter(url, "api", limits) as limiter:
        say("ready")
        await asyncio.to_thread(sys.stdin.readline)
        tasks = [asyncio.create_task(call()) for _ in range(CALLERS)]
        await asyncio.wait(tasks, timeout=seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return starts


def run_threads(url: str, seconds: float, limits: list[str]) -> list[float]:
    """Call with threads."""
    starts: list[float] = []

    def call() -> None:
        while (left_s := until - monotonic()) > 0:
            try:
                with limiter.slot(timeout=left_s):
                    starts.append(monotonic())
            except TimeoutError:
                return

    with BlockingLimiter(url, "api", limits) as limiter:
        say("ready")
        sys.stdin.readline()
        until = monotonic() + seconds
        threads = [threading.Thread(target=call) for _ in range(CALLERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return starts


def say(line: str) -> None:
    """Tell the test."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    url, kind, seconds, *limits = sys.argv[1:]
    if kind == "asyncio":
        say(json.dumps(asyncio.run(run_asyncio(url, float(seconds), limits))))
    else:
        say(json.dumps(run_threads(url, float(seconds), limits)))
