"""The APIs of a storm: a strict one and an unlimited one, in one process, that log every call and break when told to.

    python chaos_api.py LOG LIMIT LATENCY_S SEED

Prints its two ports, then takes lines ``API MODE`` on standard input until that ends.
"""

from __future__ import annotations

import asyncio
import sys
import time
from itertools import count
from pathlib import Path
from random import Random

import msgspec
from history import Call, EventLog

from callmill.config.limit_spec import parse_limit
from callmill.simulator.connection import Answer, Ending, HttpConnection, Request
from callmill.simulator.enforcers import SlidingLog
from callmill.simulator.wire import NOT_HTTP, answer, error_body, json_bytes, refuse, render

APIS = ("free", "paced")
MODES = ("well", "down", "hanging", "resetting", "garbage", "truncated", "failing")
_HANG_S = 60.0
_FLUSH_S = 0.1


class Api:
    """One API on one port."""

    def __init__(self, name: str, limit: str | None, latency_s: float, random: Random) -> None:
        self.name = name
        self.mode = "well"
        self.calls: list[Call] = []
        self._limit = None if limit is None else SlidingLog(parse_limit(limit))
        self._latency_s = latency_s
        self._random = random
        self._server: asyncio.Server | None = None
        self._connections: set[HttpConnection] = set()
        self.port = 0

    async def turn(self, mode: str) -> None:
        """Behave from now on as the mode says."""
        self.mode = mode
        if mode == "down" and self._server is not None:
            self._server.close()
            self._server = None
            for connection in list(self._connections):
                connection.close()
        elif mode != "down" and self._server is None:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: HttpConnection(self._handle, refuse=refuse, connections=self._connections),
                "127.0.0.1",
                self.port,
                backlog=4096,
            )
            self.port = self._server.sockets[0].getsockname()[1]

    def _handle(self, request: Request) -> Answer:
        began_s, number = time.time(), next(_numbers)
        job = request.headers.get("idempotency-key", "")
        worker, chunk, fence, built_s = request.headers.get("user-agent", "0 - 0 0").split(" ")
        broken = self._limit is not None and bool(self._limit.wait_ns(time.monotonic_ns(), 1))
        if self._limit is not None and not broken:
            self._limit.charge(time.monotonic_ns(), 1)
        status, reply = (
            (429, answer(request, 429, error_body("too many calls", "limit")))
            if broken
            else (self._reply(request, job, number))
        )

        def ended(delivered: bool) -> None:  # noqa: FBT001 - the connection's contract
            self.calls.append(
                Call(
                    number,
                    self.name,
                    job,
                    int(worker),
                    chunk,
                    int(fence),
                    float(built_s),
                    began_s,
                    time.time(),
                    status,
                    delivered,
                    broken,
                )
            )

        return Answer(reply.data, reply.ending, reply.delay_s, ended)

    def _reply(self, request: Request, job: str, number: int) -> tuple[int | None, Answer]:
        delay_s = self._latency_s * self._random.uniform(0.5, 1.5)
        body = json_bytes({"call": number, "job": job, "asked": msgspec.Raw(request.body)})
        match self.mode:
            case "hanging":
                return None, Answer(b"", Ending.CLOSE, _HANG_S)
            case "resetting":
                return None, Answer(b"", Ending.RESET, delay_s)
            case "garbage":
                return None, Answer(NOT_HTTP, Ending.CLOSE, delay_s)
            case "truncated":
                return None, Answer(render(200, body[:10], length=len(body)), Ending.CLOSE, delay_s)
            case "failing":
                failed = answer(request, 500, error_body("told to fail", "server_error"))
                return 500, msgspec.structs.replace(failed, delay_s=delay_s)
        return 200, msgspec.structs.replace(answer(request, 200, body), delay_s=delay_s)


_numbers = count(1)


async def serve(log: Path, limit: str, latency_s: float, seed: str) -> None:
    """Serve both APIs until standard input ends."""
    events = EventLog(log)
    apis = {
        "free": Api("free", None, latency_s, Random(f"{seed}:free")),
        "paced": Api("paced", limit, 0.05, Random(f"{seed}:paced")),
    }
    for api in apis.values():
        await api.turn("well")
    sys.stdout.write(" ".join(str(apis[name].port) for name in APIS) + "\n")
    sys.stdout.flush()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    flusher = asyncio.ensure_future(_flush(events, apis))
    while line := (await reader.readline()).decode():
        name, mode = line.split()
        await apis[name].turn(mode)
    for api in apis.values():
        await api.turn("down")
    await asyncio.sleep(_FLUSH_S)  # the callers' connections are told
    flusher.cancel()
    _write(events, apis)
    events.close()


async def _flush(events: EventLog, apis: dict[str, Api]) -> None:
    while True:
        await asyncio.sleep(_FLUSH_S)
        _write(events, apis)


def _write(events: EventLog, apis: dict[str, Api]) -> None:
    for api in apis.values():
        calls, api.calls = api.calls, []
        for start in range(0, len(calls), 100):
            events.write(*calls[start : start + 100])


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4]))
