"""The transport over requests, for users with auth plug-ins, adapters or a session factory of their own."""

from __future__ import annotations

import asyncio
import string
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import requests
from urllib3.response import BaseHTTPResponse

from callmill.workers.transports.answer_room import AnswerRoom, AnswersOfApi, ReadingInThread
from callmill.workers.transports.checked_connections import OBEDIENT, CallInThread
from callmill.workers.transports.content_codings import decoded, decoded_if_small, is_encoded
from callmill.workers.transports.port import (
    BODILESS_METHODS,
    FaultKind,
    Response,
    TransportFault,
    TransportOptions,
    no_connection_free,
    timed_out,
    too_large,
)
from callmill.workers.transports.requests_faults import fault_of
from callmill.workers.transports.requests_sessions import session_factory

_MAX_THREADS = 64
_CHUNK_BYTES = 65536
_SENDABLE = frozenset(string.ascii_letters + string.digits + string.punctuation)


class RequestsTransport:
    """One API's sessions, one per thread, since requests does not promise that a session may be shared.

    At most ``most_threads`` calls run at once, however large ``max_connections`` is. What a user's session does by
    itself (cookies, retries, proxies of the environment) stays as the user made it.
    """

    def __init__(self, options: TransportOptions, *, most_threads: int = _MAX_THREADS) -> None:
        self._options = options
        self._make_session = session_factory(options)
        threads = min(options.max_connections, most_threads)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="callmill-requests")
        self._local = threading.local()
        self._sessions: list[requests.Session] = []
        self._calls: set[CallInThread] = set()
        self._answers = options.answers or AnswersOfApi(AnswerRoom())
        self._loop = asyncio.get_running_loop()
        self._closed = False

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, timeout_s: float
    ) -> Response:
        """See the port."""
        if self._closed:
            raise TransportFault(FaultKind.CONNECT, "the transport is closed", sent=False)
        call = CallInThread(
            allow_private_addresses=self._options.allow_private_addresses,
            give_up_at_s=time.monotonic() + timeout_s,
            time=asyncio.timeout(timeout_s),
        )
        running = self._threads.submit(self._run, call, method, url, headers, body)
        self._calls.add(call)
        try:
            async with call.time:
                return await asyncio.wrap_future(running)
        except TimeoutError:
            if running.cancelled():
                raise no_connection_free() from None
            call.break_off()  # before it is asked whether it was sent: from here on, it no longer can be
            raise timed_out(sent=call.sent) from None
        finally:
            self._calls.discard(call)
            # The thread cannot be stopped, but what it waits for can: it ends, and its slot is free again.
            if not running.done():
                call.break_off()

    async def warm_up(self, url: str) -> None:
        """See the port: there is nothing that a first call waits for but its connection."""

    async def aclose(self) -> None:
        """See the port."""
        self._closed = True
        for call in list(self._calls):
            call.break_off()
        await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)
        while self._sessions:
            self._sessions.pop().close()

    def _run(
        self, call: CallInThread, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> Response:
        with call:
            try:
                return self._exchange(call, method, url, headers, body)
            except Exception as error:
                if call.broken_off:
                    raise TransportFault(FaultKind.RESET, "the call was given up", sent=call.sent) from error
                fault = fault_of(error, sent=call.sent)
                if fault is None or fault is error:
                    raise
                raise fault from error

    def _exchange(
        self, call: CallInThread, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> Response:
        session = self._session()
        request = session.prepare_request(requests.Request(method, url, headers=_encoded(headers), data=body))
        # An auth plug-in signs what requests wrote, so then that is what to send.
        as_prepared = session.auth is not None or session.params
        call.target = _exact_target((request.url or url) if as_prepared else url)
        if not as_prepared:
            request.method = method
            if not body and method in BODILESS_METHODS:
                request.headers.pop("Content-Length", None)
        settings = session.merge_environment_settings(request.url, {}, None, None, None)
        call.in_foreign_hands = self._options.session_factory is not None
        connect_s = min(self._options.connect_timeout_s, call.remaining_s())
        answer = session.send(
            request,
            allow_redirects=False,
            stream=True,
            timeout=(connect_s, call.remaining_s()),
            verify=settings["verify"],
            cert=settings["cert"],
            proxies=settings["proxies"],
        )
        connection = getattr(answer.raw, "connection", None)
        try:
            content = self._read(answer, call)
        except BaseException:
            answer.close()
            raise
        answer.raw.release_conn()
        # On the connection of a user's own adapter we cannot see whether more will come.
        keep = self._options.reuse_connections and isinstance(connection, OBEDIENT)
        if connection is not None and not keep:
            connection.close()
        return self._decode(Response(answer.status_code, _joined(answer.raw), content), call)

    def _decode(self, answer: Response, call: CallInThread) -> Response:
        """Decode a body; when there is room, if it is not small when decoded."""
        most_bytes = self._options.max_response_bytes
        if not is_encoded(answer):
            return answer
        if (small := decoded_if_small(answer, most_bytes)) is not None:
            return small
        reading = self._reading(call)
        try:
            reading.grow(most_bytes)
            return decoded(answer, most_bytes)
        finally:
            reading.end()

    def _read(self, answer: requests.Response, call: CallInThread) -> bytes:
        reading = self._reading(call)
        try:
            return self._pieces(answer, reading)
        finally:
            reading.end()

    def _reading(self, call: CallInThread) -> ReadingInThread:
        return ReadingInThread(self._answers, self._loop, lambda: call.broken_off, call.time)

    def _pieces(self, answer: requests.Response, reading: ReadingInThread) -> bytes:
        if answer.status_code < 200:
            message = f"only an interim answer, {answer.status_code}"
            raise TransportFault(FaultKind.PROTOCOL, message, sent=True)
        raw: BaseHTTPResponse = answer.raw
        chunks: list[bytes] = []
        total = 0
        # Not stream(), in which urllib3 parses chunks itself, too leniently.
        while chunk := raw.read(_CHUNK_BYTES, decode_content=False):
            total += len(chunk)
            if total > self._options.max_response_bytes:
                raise too_large(self._options.max_response_bytes)
            chunks.append(chunk)
            if total > _CHUNK_BYTES:
                reading.grow(len(chunk))
        return b"".join(chunks)

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = self._make_session()
            self._sessions.append(session)
        return session


def _encoded(headers: Mapping[str, str]) -> dict[str, str | bytes]:
    """Return headers whose values go out in UTF-8; http.client would take Latin-1, or fail."""
    return {name: value if value.isascii() else value.encode() for name, value in headers.items()}


def _exact_target(url: str) -> str | None:
    """Path and query as the caller wrote them; None when they hold what must be quoted first."""
    if not _SENDABLE.issuperset(url):
        return None
    parts = urlsplit(url)
    return (parts.path or "/") + ("?" + parts.query if "?" in url.partition("#")[0] else "")


def _joined(raw: BaseHTTPResponse) -> dict[str, str]:
    return {name.lower(): _text(", ".join(raw.headers.getlist(name))) for name in raw.headers}


def _text(value: str) -> str:
    """Return a header's value as its server meant it: http.client reads all as Latin-1, which today is rarely meant."""
    if value.isascii():
        return value
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value
