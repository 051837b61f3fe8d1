"""A program that makes calls and ends in the way it is told; its exit code says whether it ended well."""

from __future__ import annotations

import asyncio
import sys
import threading
from functools import partial
from typing import NoReturn

from transport_cases import options

from callmill.workers.transports.factory import make_transport
from callmill.workers.transports.port import Transport

END_EXIT, END_FAILURE = 3, 1


async def call(transport: Transport, url: str) -> None:
    """Make one call."""
    await transport.send("POST", url, {}, b"x", 3)


async def for_ever(transport: Transport, url: str) -> NoReturn:
    """Make calls without end."""
    while True:
        await call(transport, url)


async def main(name: str, base: str, end: str) -> None:
    """Make calls, then end."""
    transport = make_transport(name, options())
    kept.append(transport)
    await asyncio.gather(*(call(transport, base + "/") for _ in range(30)))
    if end == "closed":
        await transport.aclose()
    if end == "failure":
        raise RuntimeError(end)
    if end in ("hanging", "busy", "abandoned"):
        work = partial(call, transport, base + "/hang") if end == "hanging" else partial(for_ever, transport, base)
        kept.extend(asyncio.ensure_future(work()) for _ in range(16))
        await asyncio.sleep(0.1)
    if end in ("hanging", "busy"):
        sys.exit(END_EXIT)


def run() -> None:
    """Run ``main`` where the way to end wants it."""
    name, base, end = sys.argv[1:]
    if end == "thread":
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(main(name, base, "busy-in-thread"), loop).result()
        kept.extend(asyncio.run_coroutine_threadsafe(for_ever(kept[0], base), loop) for _ in range(16))  # type: ignore[arg-type]
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.1), loop).result()
    elif end == "abandoned":
        kept.append(loop := asyncio.new_event_loop())
        loop.run_until_complete(main(name, base, end))
    else:
        asyncio.run(main(name, base, end))


kept: list[object] = []

if __name__ == "__main__":
    run()
