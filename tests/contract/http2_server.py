"""A server that speaks just enough HTTP/2 to break it: frames are written by hand, requests name the misbehaviour.

The body of a request is ``KIND/NONCE``, and so is the first word of its answer's body. Header blocks are never decoded:
what the test wants is in the body, which HTTP/2 leaves as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from misbehaving_server import STRAY, body_for

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
NO_ERROR, INTERNAL_ERROR, REFUSED_STREAM, CANCEL = 0, 2, 7, 8
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return one frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def block(**fields: str) -> bytes:
    """Return a header block of literals; ``status`` is the pseudo-header."""
    pairs = [(":status" if name == "status" else name.replace("_", "-"), value) for name, value in fields.items()]
    return b"".join(
        b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode() for name, value in pairs
    )


@dataclass
class Stream:
    """One request, and the connection to answer it on."""

    number: int
    nonce: str
    server: Http2Server
    writer: asyncio.StreamWriter

    def send(self, *frames: bytes) -> None:
        """Send frames in one piece."""
        self.writer.write(b"".join(frames))

    def head(self, flags: int = END_HEADERS, stream: int | None = None, **fields: str) -> bytes:
        """Return the head of an answer."""
        given = {"status": "200", "x_for": self.nonce} | fields
        return frame(HEADERS, flags, stream or self.number, block(**given))

    def data(self, body: bytes | None = None, flags: int = END_STREAM) -> bytes:
        """Return the body of the answer."""
        return frame(DATA, flags, self.number, body_for(self.nonce) if body is None else body)

    def reset(self, code: int) -> bytes:
        """Return the frame that ends the stream."""
        return frame(RST_STREAM, 0, self.number, struct.pack(">I", code))

    def goaway(self, last: int, code: int = NO_ERROR) -> bytes:
        """Return the frame that ends the connection, after the stream ``last``."""
        return frame(GOAWAY, 0, 0, struct.pack(">II", last, code))


@dataclass
class Http2Server:
    """What it saw.

    Attributes:
        seen: What each request said, in order.
        held: Streams whose answer waits for another request.
        serving: The connections, and who serves them.
    """

    port: int = 0
    connections: int = 0
    seen: list[str] = field(default_factory=list)
    held: list[Stream] = field(default_factory=list)
    serving: dict[asyncio.Task[None], asyncio.StreamWriter] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Its address."""
        return f"https://127.0.0.1:{self.port}/"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Speak HTTP/2 on one connection."""
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self.serving[task] = writer
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                if await reader.readexactly(len(_PREFACE)) == _PREFACE:
                    writer.write(frame(SETTINGS, 0, 0))
                    await self._frames(reader, writer)
        finally:
            writer.close()

    async def _frames(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        bodies: dict[int, bytes] = {}
        while not writer.is_closing():
            first = await reader.readexactly(9)
            kind, flags, stream = struct.unpack(">BBI", first[3:])
            payload = await reader.readexactly(int.from_bytes(first[:3]))
            if kind in (SETTINGS, PING) and not flags & ACK:
                writer.write(frame(kind, ACK, 0, payload if kind == PING else b""))
            if kind == DATA:
                bodies[stream] = bodies.get(stream, b"") + payload
                if flags & END_STREAM:
                    said = bodies.pop(stream).decode()
                    self.seen.append(said)
                    name, _, nonce = said.partition("/")
                    await BEHAVIOURS[name](Stream(stream, nonce, self, writer))
                    await writer.drain()


@contextlib.asynccontextmanager
async def http2_server(tls: ssl.SSLContext) -> AsyncIterator[Http2Server]:
    """Serve until the block ends."""
    server = Http2Server()
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls)
    server.port = listener.sockets[0].getsockname()[1]
    async with listener:
        yield server
        for writer in server.serving.values():
            writer.transport.abort()
        await asyncio.gather(*server.serving)


async def _good(stream: Stream) -> None:
    stream.send(stream.head(), stream.data())


async def _interim(stream: Stream) -> None:
    stream.send(stream.head(status="103", x_for=STRAY))
    await asyncio.sleep(0.01)
    stream.send(stream.head(status="102", x_for=STRAY), stream.head(), stream.data())


async def _trailers(stream: Stream) -> None:
    trailers = frame(HEADERS, END_HEADERS | END_STREAM, stream.number, block(x_for=STRAY, x_check="1"))
    stream.send(stream.head(), stream.data(flags=0), trailers)


async def _swapped(stream: Stream) -> None:
    """Answer in pairs, the later one first."""
    stream.server.held.append(stream)
    if len(stream.server.held) == 2:
        for waiting in reversed(stream.server.held):
            waiting.send(waiting.head(), waiting.data())
        stream.server.held.clear()


async def _interleaved(stream: Stream) -> None:
    """Answer in pairs, whose bodies come piece by piece in turns."""
    stream.server.held.append(stream)
    if len(stream.server.held) == 2:
        pair = list(stream.server.held)
        stream.server.held.clear()
        stream.send(*(one.head() for one in pair))
        for place in range(len(body_for(pair[0].nonce))):
            stream.send(*(one.data(body_for(one.nonce)[place : place + 1], flags=0) for one in pair))
        stream.send(*(one.data(b"") for one in pair))


async def _goaway_after(stream: Stream) -> None:
    stream.send(stream.head(), stream.data(), stream.goaway(stream.number))


async def _goaway_before(stream: Stream) -> None:
    """Say that this request was not looked at, the first time that it comes."""
    if stream.server.seen.count(f"goaway-before/{stream.nonce}") == 1:
        stream.send(stream.goaway(stream.number - 2 if stream.number > 1 else 0))
        stream.writer.close()
    else:
        await _good(stream)


async def _goaway_in_body(stream: Stream) -> None:
    stream.send(stream.head(), stream.data(b"{", flags=0), stream.goaway(stream.number, INTERNAL_ERROR))
    stream.writer.close()


async def _refused(stream: Stream) -> None:
    """Refuse the stream, the first time that it comes."""
    if stream.server.seen.count(f"refused/{stream.nonce}") == 1:
        stream.send(stream.reset(REFUSED_STREAM))
    else:
        await _good(stream)


async def _reset(stream: Stream) -> None:
    stream.send(stream.reset(INTERNAL_ERROR))


async def _reset_in_body(stream: Stream) -> None:
    stream.send(stream.head(), stream.data(b"{", flags=0), stream.reset(CANCEL))


async def _two_answers(stream: Stream) -> None:
    stray = frame(DATA, END_STREAM, stream.number, body_for(STRAY))
    stream.send(stream.head(), stream.data(), stream.head(x_for=STRAY), stray)


async def _stray_stream(stream: Stream) -> None:
    """Answer a request that will be made, and one that never will be."""
    stream.send(stream.head(stream=stream.number + 2, x_for=STRAY), stream.head(stream=2, x_for=STRAY))


async def _wrong_length(stream: Stream) -> None:
    stream.send(stream.head(content_length="3"), stream.data())


async def _data_first(stream: Stream) -> None:
    stream.send(stream.data(body_for(STRAY), flags=0), stream.head())


async def _unfinished_head(stream: Stream) -> None:
    stream.send(stream.head(flags=0), stream.data())


async def _http1(stream: Stream) -> None:
    stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


async def _upgrade(stream: Stream) -> None:
    stream.send(stream.head(END_HEADERS | END_STREAM, status="101"))


BEHAVIOURS: dict[str, Callable[[Stream], Awaitable[None]]] = {
    "good": _good,
    "interim": _interim,
    "trailers": _trailers,
    "swapped": _swapped,
    "interleaved": _interleaved,
    "goaway-after": _goaway_after,
    "goaway-before": _goaway_before,
    "goaway-in-body": _goaway_in_body,
    "refused": _refused,
    "reset": _reset,
    "reset-in-body": _reset_in_body,
    "two-answers": _two_answers,
    "stray-stream": _stray_stream,
    "wrong-length": _wrong_length,
    "data-first": _data_first,
    "unfinished-head": _unfinished_head,
    "http1": _http1,
    "upgrade": _upgrade,
}
