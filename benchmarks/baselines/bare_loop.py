"""What a call costs without any queue: nothing durable, nothing limited.

``python -m baselines.bare_loop CLIENT CALLS URL``, with aiohttp, pyreqwest or requests as the client; prints
``{"calls_per_s", "cpu_us"}``, the CPU time of a call in this process, without its start.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import aiohttp
import requests
import uvloop
from pyreqwest.client import ClientBuilder
from requests.adapters import HTTPAdapter
from workload import request_body

CONCURRENCY = 100
CONNECTIONS = 500
"""What a worker opens to an API; a loop that is late must not open thousands at once."""

HEADERS = {"Authorization": "Bearer secret", "Content-Type": "application/json"}

Call = Callable[[int], Awaitable[object]]


class Stopwatch:
    """Wall and CPU time from its making on."""

    def __init__(self) -> None:
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()

    def report(self, calls: int) -> dict[str, float]:
        """Return what the calls took since."""
        wall_s, cpu_s = time.perf_counter() - self._wall_s, time.process_time() - self._cpu_s
        return {"calls_per_s": calls / wall_s, "cpu_us": cpu_s / calls * 1e6}


async def make_all(call: Call, calls: int) -> dict[str, float]:
    """Make the calls, as many at once as the other clients do."""
    numbers = iter(range(calls))

    async def lane() -> None:
        for number in numbers:
            await call(number)

    stopwatch = Stopwatch()
    await asyncio.gather(*(lane() for _ in range(CONCURRENCY)))
    return stopwatch.report(calls)


@asynccontextmanager
async def aiohttp_call(url: str) -> AsyncIterator[Call]:
    """Yield what makes a call with aiohttp, as most scripts do."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONNECTIONS)) as session:

        async def call(number: int) -> None:
            async with session.post(url, json=request_body(number), headers=HEADERS) as response:
                response.raise_for_status()
                json.loads(await response.read())

        yield call


async def with_aiohttp(calls: int, url: str) -> dict[str, float]:
    """Call with aiohttp."""
    async with aiohttp_call(url) as call:
        return await make_all(call, calls)


async def with_pyreqwest(calls: int, url: str) -> dict[str, float]:
    """Call with pyreqwest: about the least that a call costs in one Python process."""
    async with ClientBuilder().error_for_status(enable=True).build() as client:

        async def call(number: int) -> None:
            response = await client.post(url).headers(HEADERS).body_json(request_body(number)).build().send()
            await response.json()

        return await make_all(call, calls)


def with_requests(calls: int, url: str) -> dict[str, float]:
    """Call with one requests.Session and many threads."""
    session = requests.Session()
    session.mount("http://", HTTPAdapter(pool_maxsize=CONCURRENCY))

    def call(number: int) -> None:
        response = session.post(url, json=request_body(number), headers=HEADERS, timeout=30)
        response.raise_for_status()
        response.json()

    stopwatch = Stopwatch()
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        for _ in pool.map(call, range(calls)):
            pass
    return stopwatch.report(calls)


def main(client: str, calls: int, url: str) -> dict[str, float]:
    """Make the calls with the client and return what they took."""
    match client:
        case "aiohttp":
            return uvloop.run(with_aiohttp(calls, url))
        case "pyreqwest":
            return uvloop.run(with_pyreqwest(calls, url))
        case "requests":
            return with_requests(calls, url)
    raise SystemExit(f"bare_loop: {client!r} is none of aiohttp, pyreqwest, requests")


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), sys.argv[3])))
