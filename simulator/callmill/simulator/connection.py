"""HTTP/1.1 on one connection, with full say over when and how it breaks.

    reading ──message complete──▶ answering ──delay over──▶ written ──keep-alive──▶ reading
                                     │                         └── close / reset ──▶ closed
                                     └── the client leaves: the answer is abandoned ──▶ closed

Requests that a client pipelines wait until the one before is answered.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from typing import cast

import httptools
from msgspec import Struct

MAX_BODY_BYTES = 16 * 1024 * 1024
_KEPT_HEADERS = frozenset({b"idempotency-key", b"content-type", b"user-agent", b"x-simulator-tokens", b"expect"})
_LINGER_ZERO = struct.pack("ii", 1, 0)


class Request(Struct, frozen=True):
    """One whole request.

    Attributes:
        method: HTTP method.
        target: Path and query as sent.
        headers: Names in lower case; only those that the simulator may repeat or needs. Credentials are never kept.
        body: Body, chunks joined.
        keep_alive: Whether the client wants the connection again.
    """

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    keep_alive: bool


class Ending(Enum):
    """What becomes of the connection after an answer."""

    KEEP = auto()
    CLOSE = auto()
    RESET = auto()


class Answer(Struct, frozen=True):
    """What to send for a request.

    Attributes:
        data: Bytes for the wire; may be empty.
        ending: What becomes of the connection.
        delay_s: Seconds until ``data`` is sent.
        ended: Called once: with True when ``data`` was handed to the kernel or the fault played, with False when the
            client had left before.
    """

    data: bytes
    ending: Ending
    delay_s: float = 0.0
    ended: Callable[[bool], None] | None = None


class HttpConnection(asyncio.Protocol):
    """One client connection; asks ``handle`` for the answer when a request has wholly arrived."""

    def __init__(
        self,
        handle: Callable[[Request], Answer],
        *,
        refuse: Callable[[int, str], bytes],
        connections: set[HttpConnection],
    ) -> None:
        self._handle = handle
        self._refuse = refuse
        self._connections = connections
        self._transport: asyncio.Transport
        self._parser = httptools.HttpRequestParser(self)
        self._pending: deque[Request] = deque()
        self._answer: Answer | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._start_message()

    def _start_message(self) -> None:
        self._target = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._body_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin reading."""
        # uvloop's transports have the methods of asyncio.Transport but are no subclass of it.
        self._transport = cast(asyncio.Transport, transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the protocol's signature
        """Abandon what was to be answered."""
        self._connections.discard(self)
        self._pending.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._end_answer(delivered=False)

    def close(self) -> None:
        """Close now; an answer under way is abandoned."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse; whole requests arrive through ``on_message_complete``."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # The request was handled as if it asked for no upgrade, which HTTP allows; what follows is not HTTP/1.1.
            self._transport.pause_reading()
        except httptools.HttpParserCallbackError:
            # A bug of ours, which must not pass for a mistake of the client.
            raise
        except httptools.HttpParserError as error:
            self._give_up(400, f"not HTTP/1.1: {error}")

    def on_message_begin(self) -> None:
        """Called by the parser."""
        self._start_message()

    def on_url(self, url: bytes) -> None:
        """Called by the parser."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        lowered = name.lower()
        if lowered in _KEPT_HEADERS:
            self._headers[lowered.decode("ascii")] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        if self._headers.pop("expect", "").lower() == "100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self._body_bytes += len(body)
        if self._body_bytes > MAX_BODY_BYTES:
            self._body.clear()
            self._give_up(413, f"a body is at most {MAX_BODY_BYTES} bytes")
            return
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Called by the parser: the request has arrived."""
        if self._transport.is_closing():
            return
        request = Request(
            self._parser.get_method().decode("ascii"),
            self._target.decode("latin-1"),
            self._headers,
            b"".join(self._body),
            self._parser.should_keep_alive(),
        )
        if self._answer is None:
            self._take(request)
        else:
            self._pending.append(request)
            self._transport.pause_reading()

    def _take(self, request: Request) -> None:
        answer = self._answer = self._handle(request)
        if answer.delay_s > 0:
            self._timer = asyncio.get_running_loop().call_later(answer.delay_s, self._send)
        else:
            self._send()

    def _send(self) -> None:
        answer = self._answer
        assert answer is not None  # noqa: S101 - the timer runs only while an answer is due
        self._timer = None
        if self._transport.is_closing():
            # The client left; connection_lost follows and abandons the answer.
            return
        if answer.data:
            self._transport.write(answer.data)
        self._end_answer(delivered=True)
        if answer.ending is Ending.RESET:
            self._reset()
        elif answer.ending is Ending.CLOSE:
            self._transport.close()
        elif self._pending:
            asyncio.get_running_loop().call_soon(self._take_next)

    def _take_next(self) -> None:
        if self._pending and not self._transport.is_closing():
            request = self._pending.popleft()
            if not self._pending:
                self._transport.resume_reading()
            self._take(request)

    def _end_answer(self, *, delivered: bool) -> None:
        answer, self._answer = self._answer, None
        if answer is not None and answer.ended is not None:
            answer.ended(delivered)

    def _reset(self) -> None:
        # A zero linger time makes the kernel send RST in place of FIN.
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        self._transport.abort()

    def _give_up(self, status: int, message: str) -> None:
        if not self._transport.is_closing():
            self._transport.write(self._refuse(status, message))
            self._transport.close()
