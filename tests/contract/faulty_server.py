"""A server on raw sockets that answers exactly the bytes, or breaks exactly the way, that a test asks for."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

Handler = Callable[["Exchange"], Awaitable[None]]
EarlyHandler = Callable[["Exchange"], Awaitable[None] | None]
"""Answers a request before its body is read; returns None for one that it leaves to the ordinary handler."""


@dataclass
class Exchange:
    """One request as it arrived, and the connection to answer it on."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    names: tuple[str, ...] = ()
    """The names of its headers, as written."""

    async def answer(self, status: str = "200 OK", headers: str = "", body: bytes = b"ok") -> None:
        """Send a whole answer with its length."""
        head = f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
        await self.raw(head.encode() + (b"" if self.method == "HEAD" else body))

    async def raw(self, data: bytes) -> None:
        """Send these very bytes."""
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """Break the connection with a TCP reset."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@dataclass
class FaultyServer:
    """What the server saw, and where it listens."""

    port: int = 0
    scheme: str = "http"
    requests: list[Exchange] = field(default_factory=list)
    connections: int = 0
    open_connections: int = 0
    ended: set[int] = field(default_factory=set)
    closed: threading.Condition = field(default_factory=threading.Condition)
    arrived: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    writers: set[asyncio.StreamWriter] = field(default_factory=set)
    loop: asyncio.AbstractEventLoop | None = None

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        """Address of ``path`` on this server."""
        return f"{self.scheme}://{host}:{self.port}{path}"

    def wait_until_open(self, connections: int, timeout_s: float = 5) -> bool:
        """Block until no more than ``connections`` are open; False when that did not happen in time."""
        with self.closed:
            return self.closed.wait_for(lambda: self.open_connections <= connections, timeout_s)

    def wait_until_ended(self, connections: set[int], timeout_s: float = 5) -> bool:
        """Block until these connections are gone; False when that did not happen in time."""
        with self.closed:
            return self.closed.wait_for(lambda: connections <= self.ended, timeout_s)

    def drop_connections(self) -> None:
        """Close every connection in good order."""
        assert self.loop is not None
        self.loop.call_soon_threadsafe(lambda: [writer.close() for writer in self.writers])

    async def serve(
        self,
        handler: Handler,
        early: EarlyHandler | None,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Read requests from one connection and let ``early`` or ``handler`` answer them."""
        self.connections += 1
        self.open_connections += 1
        number = self.connections
        self.writers.add(writer)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while (exchange := await _read_head(number, reader, writer)) and not writer.is_closing():
                    answered = None if early is None else early(exchange)
                    if answered is None:
                        exchange.body = await reader.readexactly(int(exchange.headers.get("content-length", 0)))
                    self.requests.append(exchange)
                    self.arrived.release()
                    await (answered or handler(exchange))
        finally:
            writer.close()
            self.writers.discard(writer)
            with self.closed:
                self.open_connections -= 1
                self.ended.add(number)
                self.closed.notify_all()


async def _read_head(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Exchange | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.split("\r\n")[:-2]
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    names = tuple(line.partition(":")[0] for line in lines)
    return Exchange(method, target, headers, b"", number, reader, writer, names)


@contextlib.contextmanager
def faulty_server(
    handler: Handler, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1", early: EarlyHandler | None = None
) -> Iterator[FaultyServer]:
    """Serve in a thread of its own until the block ends."""
    server = FaultyServer(scheme="https" if tls else "http")
    ready = threading.Event()
    loop = server.loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def run() -> None:
        # Its protocol is named, or asyncio would leave Nagle's algorithm on, which holds small answers back.
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        # Its connections inherit this: what a client sends and nobody reads stays with the client, on any machine.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
        listening.bind((host, 0))
        listener = await asyncio.start_server(
            lambda reader, writer: server.serve(handler, early, reader, writer), sock=listening, ssl=tls, backlog=4096
        )
        server.port = listener.sockets[0].getsockname()[1]
        ready.set()
        await stop.wait()
        listener.close()
        # A connection in the middle of being accepted belongs to its task: cancelled, it would leave its socket open.
        accepting = [task for task in asyncio.all_tasks() if "_accept_connection2" in repr(task.get_coro())]
        if accepting:
            await asyncio.wait(accepting, timeout=1)
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # A TLS handshake that the client broke off is asyncio's to end, and it tells nobody.
        transports, give_up_at = loop._transports, loop.time() + 1  # type: ignore[attr-defined]
        while any(one._sock for one in transports.values()) and loop.time() < give_up_at:  # noqa: ASYNC110 - no event for it
            await asyncio.sleep(0.005)

    def main() -> None:
        loop.set_exception_handler(lambda _loop, _context: None)
        loop.run_until_complete(run())
        loop.close()

    thread = threading.Thread(target=main, name="faulty-server")
    thread.start()
    ready.wait()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
