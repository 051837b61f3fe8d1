"""A raw API: ``raw_api.py PORT LOG slow SECONDS | refusing SECONDS RETRY_AFTER | queueing SLOTS MEAN_S SEED``.

``slow``: answers after so long. ``refusing``: answers 429 for so long from the first call on, then 200.
``queueing``: an M/M/c queue: so many calls are worked on at once, each for an exponentially distributed time.
Writes one line per answer: Unix time of its end, seconds that it took, status, path.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

_BODY = b'{"ok": true}'
_Judge = Callable[[], Awaitable[tuple[str, str]]]
"""Returns the status line's end and further headers, when the answer may go."""


def slow(seconds: str) -> _Judge:
    """Take everything, slowly."""
    latency_s = float(seconds)

    async def judge() -> tuple[str, str]:
        await asyncio.sleep(latency_s)
        return "200 OK", ""

    return judge


def refusing(seconds: str, retry_after: str) -> _Judge:
    """Take nothing for a while."""
    until_s = 0.0

    async def judge() -> tuple[str, str]:
        nonlocal until_s
        now_s = time.monotonic()
        until_s = until_s or now_s + float(seconds)
        return ("429 Too Many Requests", f"Retry-After: {retry_after}\r\n") if now_s < until_s else ("200 OK", "")

    return judge


def queueing(slots: str, mean_s: str, seed: str) -> _Judge:
    """Work on so many calls at once. The n-th call that is worked on takes the same time with the same seed."""
    free, draws = asyncio.Semaphore(int(slots)), random.Random(seed)

    async def judge() -> tuple[str, str]:
        async with free:
            await asyncio.sleep(draws.expovariate(1 / float(mean_s)))
        return "200 OK", ""

    return judge


class RawApi:
    """Answers as judged, and notes it."""

    def __init__(self, judge: _Judge, log: Path) -> None:
        self._judge = judge
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the calls of one connection until it ends."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                began_s, path = time.monotonic(), head.split(" ", 2)[1]
                await reader.readexactly(_length(head))
                status, headers = await self._judge()
                writer.write(f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(_BODY)}\r\n\r\n".encode() + _BODY)
                self._note(time.monotonic() - began_s, status, path)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    def _note(self, took_s: float, status: str, path: str) -> None:
        os.write(self._log, f"{time.time():.6f} {took_s:.6f} {status[:3]} {path}\n".encode())


def _length(head: str) -> int:
    lines = (line.partition(":") for line in head.split("\r\n"))
    return next((int(value) for name, _, value in lines if name.lower() == "content-length"), 0)


async def main() -> None:
    """Serve until the process is ended."""
    port, log, kind, *arguments = sys.argv[1:]
    api = RawApi({"slow": slow, "refusing": refusing, "queueing": queueing}[kind](*arguments), Path(log))
    # Its protocol is named, or asyncio would leave Nagle's algorithm on, which holds small answers back.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", int(port)))
    await (await asyncio.start_server(api.serve, sock=listening, backlog=1024)).serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
