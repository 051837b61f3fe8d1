"""An API whose path says how it answers, so that each job of a test chooses its fate."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator

from faulty_server import Exchange, FaultyServer, faulty_server


class ScriptedApi:
    """What the API was asked.

    It answers ``/status/404``, ``/flaky/2/KEY`` (two failures first), ``/throttle/KEY`` (one 429 first),
    ``/redirect/TO`` (with | for /), ``/moved/307/TO`` likewise, ``/wait/0.5``, ``/hang`` and ``/reset`` as they say,
    anything else with 200.
    """

    def __init__(self, server: FaultyServer, arrivals: list[tuple[float, str]]) -> None:
        self._server = server
        self.arrivals = arrivals
        """When each request was there, on the monotonic clock, and its target."""

    @property
    def url(self) -> str:
        """Base URL."""
        return self._server.url("").rstrip("/")

    @property
    def requests(self) -> list[Exchange]:
        """Every request so far."""
        return self._server.requests

    def seen(self, target: str) -> list[Exchange]:
        """Return the requests for one target."""
        return [exchange for exchange in self.requests if exchange.target == target]


async def _answer_as_ever(exchange: Exchange, path: list[str]) -> None:
    """Behave as a path says that means the same each time."""
    match path:
        case ["redirect", *target]:
            await exchange.answer("302 Found", f"Location: {'/'.join(target).replace('|', '/')}\r\n", b"")
        case ["moved", status, *target]:
            await exchange.answer(f"{status} Moved", f"Location: {'/'.join(target).replace('|', '/')}\r\n", b"")
        case ["reset"]:
            exchange.reset()
        case ["wait", seconds]:
            await asyncio.sleep(float(seconds))
            await exchange.answer()
        case ["hang"]:
            await asyncio.sleep(60)
        case _:
            await exchange.answer()


@contextlib.contextmanager
def scripted_api() -> Iterator[ScriptedApi]:
    """Serve on 127.0.0.1 until the block ends."""
    times: Counter[str] = Counter()
    arrivals: list[tuple[float, str]] = []

    async def answer(exchange: Exchange) -> None:
        times[exchange.target] += 1
        arrivals.append((time.monotonic(), exchange.target))
        first = times[exchange.target] == 1
        match exchange.target.split("/")[1:]:
            case ["status", status]:
                await exchange.answer(f"{status} Told", "Content-Type: text/plain\r\nX-Request-Id: r1\r\n", b"as told")
            case ["flaky", failures, _] if times[exchange.target] <= int(failures):
                await exchange.answer("500 Flaky", body=b"not yet")
            case ["throttle", *_] if first:
                await exchange.answer("429 Slow down", "Retry-After: 1\r\n", b"")
            case path:
                await _answer_as_ever(exchange, path)

    with faulty_server(answer) as server:
        yield ScriptedApi(server, arrivals)
