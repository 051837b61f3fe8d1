"""The default transport: pyreqwest, HTTP/1.1 and HTTP/2."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta

from msgspec import Struct
from pyreqwest.bytes import Bytes
from pyreqwest.client import Client, ClientBuilder
from pyreqwest.exceptions import RequestTimeoutError
from pyreqwest.request import RequestBuilder, StreamRequest
from pyreqwest.response import BaseResponse, ResponseBodyReader

from callmill.workers.transports import exit_guard
from callmill.workers.transports.abandoned_calls import AbandonedCalls, Cancelled, unhurt
from callmill.workers.transports.answer_gathering import AnswerGathering
from callmill.workers.transports.answer_room import AnswerRoom, AnswersOfApi
from callmill.workers.transports.authorities import no_system_authorities, read_authorities
from callmill.workers.transports.connection_slots import ConnectionSlots
from callmill.workers.transports.content_codings import ACCEPT_ENCODING, decoded, decoded_if_small
from callmill.workers.transports.lazy_headers import LazyHeaders
from callmill.workers.transports.pinned_clients import Pinned, PinnedClients, Route, close_now
from callmill.workers.transports.port import (
    BODILESS_METHODS,
    FaultKind,
    Response,
    TransportFault,
    TransportOptions,
    no_connection_free,
    no_room,
    too_large,
)
from callmill.workers.transports.pyreqwest_faults import fault_of
from callmill.workers.transports.user_agent import USER_AGENT

_BODILESS_STATUSES = frozenset({101, 204, 304})
_UNCODED = (None, "chunked")
_IDLE_S = 60
_WARM_UP_S = 5.0
_PIECE_BYTES = 65536
_COPIED_BYTES = 65536


class _Call(Struct, gc=False):
    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes | None
    abandoned: bool = False


class PyreqwestTransport:
    """One API's pooled pyreqwest clients.

    A cancelled call goes on in the background until its answer or its time-out, and keeps its place among the
    ``max_connections`` until then: pyreqwest cannot break it off.

    A URL goes out as the WHATWG URL standard writes it: percent-encodings stay as they are, dot segments are resolved,
    and in a query ``'`` becomes ``%27``.
    """

    def __init__(self, options: TransportOptions) -> None:
        self._options = options
        self._roots = None if options.ca_file is None else read_authorities(options.ca_file)
        self._slots = ConnectionSlots(options.max_connections)
        self._pins = PinnedClients(self._make_client)
        self._anywhere = Pinned(self._make_client(None, None)) if options.allow_private_addresses else None
        self._abandoned = AbandonedCalls()
        self._gathering = AnswerGathering()
        self._timeouts: dict[float, timedelta] = {}
        self._read_limit = options.max_response_bytes + 1
        self._buffer_bytes = min(self._read_limit, _PIECE_BYTES)
        self._answers = options.answers or AnswersOfApi(AnswerRoom())
        self._closed = False
        exit_guard.guard(self)

    @property
    def in_flight(self) -> int:
        """Calls that have not ended."""
        return self._slots.taken

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, timeout_s: float
    ) -> Response:
        """See the port."""
        if self._closed:
            raise TransportFault(FaultKind.CONNECT, "the transport is closed", sent=False)
        if not self._slots.take_now():
            timeout_s = await self._wait_for_slot(timeout_s)
        call = _Call(method, url, headers, body)
        try:
            if self._anywhere is not None:
                return await self._exchange(self._anywhere, call, timeout_s)
            return await self._exchange_pinned(call, timeout_s)
        except Cancelled as cancelled:
            call.abandoned = True
            self._abandoned.adopt(cancelled.rest, self._slots.give_back)
            raise asyncio.CancelledError from None
        finally:
            if not call.abandoned:
                self._slots.give_back()
                self._gathering.answered()

    async def warm_up(self, url: str) -> None:
        """See the port. The client's threads start with an exchange: with one that a closed port of ours refuses."""
        with suppress(TransportFault):
            client = self._anywhere or (await self._find_route(url, _WARM_UP_S))[0].pinned
            with socket.socket() as closed:
                closed.bind(("127.0.0.1", 0))  # bound but not listening: nobody else's, and it refuses
                nowhere = f"http://127.0.0.1:{closed.getsockname()[1]}/"
                await self._exchange(client, _Call("HEAD", nowhere, {}, None), _WARM_UP_S)

    async def aclose(self) -> None:
        """See the port."""
        self.close_now()
        await self._slots.drained()
        exit_guard.release(self)

    def close_now(self) -> None:
        """End the calls in flight and refuse new ones, without an event loop."""
        if self._closed:
            return
        self._closed = True
        for pinned in (*self._pins.pinned, *([self._anywhere] if self._anywhere else [])):
            close_now(pinned.client)

    async def _wait_for_slot(self, timeout_s: float) -> float:
        started_s = time.monotonic()
        try:
            async with asyncio.timeout(timeout_s):
                await self._slots.take()
        except TimeoutError:
            raise no_connection_free() from None
        return max(timeout_s - (time.monotonic() - started_s), 0.001)

    async def _exchange_pinned(self, call: _Call, timeout_s: float) -> Response:
        route = self._pins.known(call.url)
        if route is None:
            route, timeout_s = await self._find_route(call.url, timeout_s)
        give_up_at_s = time.monotonic() + timeout_s
        tries_left = len(route.addresses)
        while True:
            tries_left -= 1
            pinned, address = route.pinned, route.addresses[0]
            pinned.in_flight += 1
            try:
                return await self._exchange(pinned, call, timeout_s)
            except TransportFault as fault:
                # Another address is no second call: nothing of the request has left this machine.
                timeout_s = give_up_at_s - time.monotonic()
                unreachable = not fault.sent and fault.kind in (FaultKind.CONNECT, FaultKind.TIMEOUT)
                if not unreachable or not self._pins.move_on(route, address) or timeout_s <= 0 or not tries_left:
                    raise
            finally:
                self._pins.release(pinned)

    async def _find_route(self, url: str, timeout_s: float) -> tuple[Route, float]:
        started_s = time.monotonic()
        try:
            async with asyncio.timeout(timeout_s):
                route = await self._pins.find(url)
        except TimeoutError:
            raise TransportFault(FaultKind.TIMEOUT, "the name was not resolved in time", sent=False) from None
        return route, max(timeout_s - (time.monotonic() - started_s), 0.001)

    async def _exchange(self, pinned: Pinned, call: _Call, timeout_s: float) -> Response:
        give_up_at_s = time.monotonic() + timeout_s
        try:
            request = self._build(pinned.client, call, timeout_s)
            raw = await unhurt(request.__aenter__())
            status = raw.status
            if call.method == "HEAD" or status in _BODILESS_STATUSES:
                return _bodiless(status, raw)
            reader = raw.body_reader
            # So much was read together with the head, so this takes what is there; the rest is read if there is room.
            first = await unhurt(reader.read(_PIECE_BYTES))
            if first is None:
                return Response(status, LazyHeaders(raw), b"")
            if len(first) < _PIECE_BYTES and len(first) < self._read_limit:
                body = first.to_bytes()
            else:
                body = await self._read_rest(request, reader, first, give_up_at_s)
            answer = Response(status, LazyHeaders(raw), body)
            return await self._decode(answer) if _is_encoded(raw) else answer
        except Exception as error:
            fault = fault_of(error, connects_in_time=timeout_s > self._options.connect_timeout_s)
            if fault is None:
                raise
            raise fault from error

    def _build(self, client: Client, call: _Call, timeout_s: float) -> StreamRequest:
        timeout = self._timeouts.get(timeout_s)
        if timeout is None:
            if len(self._timeouts) > 64:
                self._timeouts.clear()
            timeout = self._timeouts[timeout_s] = timedelta(seconds=timeout_s)
        builder = client.request(call.method, call.url).headers(call.headers).timeout(timeout)
        if call.body:
            builder = _with_body(builder, call.body)
        elif call.method not in BODILESS_METHODS:
            builder = builder.header("content-length", "0")
        return builder.streamed_read_buffer_limit(self._buffer_bytes).build_streamed()

    async def _read_rest(
        self, request: StreamRequest, reader: ResponseBodyReader, first: Bytes, give_up_at_s: float
    ) -> bytes:
        pieces = [first]
        total = len(first)
        reading = self._answers.reading()
        try:
            while total < self._read_limit:
                await reading.room_for(_PIECE_BYTES, give_up_at_s - time.monotonic())
                if (piece := await unhurt(reader.read_chunk())) is None:
                    break
                pieces.append(piece)
                total += len(piece)
                reading.grow(len(piece))
        except (TimeoutError, RequestTimeoutError):
            # The time that pyreqwest gives a call cannot be changed once the call is made.
            if not reading.waited:
                raise
            await request.__aexit__(None, None, None)
            raise no_room() from None
        finally:
            reading.end()
        if total < self._read_limit:
            return b"".join(piece.to_bytes() for piece in pieces)
        await request.__aexit__(None, None, None)
        raise too_large(self._options.max_response_bytes)

    async def _decode(self, answer: Response) -> Response:
        """Decode a body; when there is room and in another thread, if it is not small when decoded."""
        most_bytes = self._options.max_response_bytes
        if (small := decoded_if_small(answer, most_bytes)) is not None:
            return small
        reading = self._answers.reading()
        try:
            await reading.room_for(most_bytes)
            reading.grow(most_bytes)
            return await asyncio.to_thread(decoded, answer, most_bytes)
        finally:
            reading.end()

    def _make_client(self, host: str | None, address: str | None) -> Client:
        options = self._options
        builder = (
            ClientBuilder()
            .http2(enable=True)
            .http2_adaptive_window(enabled=True)
            .http1_allow_obsolete_multiline_headers_in_responses(value=True)
            .follow_redirects(enable=False)
            .referer(enable=False)
            .default_cookie_store(enable=False)
            .no_proxy()
            .user_agent(USER_AGENT)
            .default_headers({"accept-encoding": ACCEPT_ENCODING})
            .gzip(enable=False)
            .deflate(enable=False)
            .brotli(enable=False)
            .zstd(enable=False)
            .connect_timeout(timedelta(seconds=options.connect_timeout_s))
            .pool_idle_timeout(timedelta(seconds=_IDLE_S))
            .pool_max_idle_per_host(options.max_connections if options.reuse_connections else 0)
        )
        if host is not None and address is not None and host.strip("[]") != address:
            builder = builder.resolve(host, address, 0)
        if self._roots is None:
            return builder.build()
        with no_system_authorities():
            return builder.add_root_certificate_pem(self._roots).build()


def _with_body(builder: RequestBuilder, body: bytes) -> RequestBuilder:
    """Add a body, as text if it is any: that is copied, while for bytes its thread needs Python's lock to free them."""
    if len(body) > _COPIED_BYTES:
        return builder.body_bytes(body)
    try:
        return builder.body_text(body.decode())
    except UnicodeDecodeError:
        return builder.body_bytes(body)


def _is_encoded(raw: BaseResponse) -> bool:
    """Say whether a body may have to be decoded: asked of every answer, so without making a mapping."""
    try:
        return raw.get_header("content-encoding") is not None or raw.get_header("transfer-encoding") not in _UNCODED
    except ValueError:  # not ASCII
        return True


def _bodiless(status: int, raw: BaseResponse) -> Response:
    if status == 101:
        message = "101 Switching Protocols, which the request did not ask for"
        raise TransportFault(FaultKind.PROTOCOL, message, sent=True)
    return Response(status, LazyHeaders(raw), b"")
