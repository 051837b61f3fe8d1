"""The port between the worker and the HTTP client libraries.

A transport makes one HTTP exchange. It follows no redirect, keeps no cookie, repeats nothing: what to do with an answer
or a fault is the caller's business, because every further exchange is a call that the API counts.
"""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from enum import StrEnum
from typing import Any, Protocol

from msgspec import Struct

from callmill.config.redaction import without_secrets
from callmill.errors import OutsideError
from callmill.workers.transports.answer_room import AnswersOfApi

BODILESS_METHODS = frozenset({"GET", "HEAD", "DELETE", "OPTIONS", "TRACE"})
"""Methods of which servers expect no body: a request without one has no length, while others say that it is 0."""


class FaultKind(StrEnum):
    """How an exchange failed before a whole answer was there."""

    TIMEOUT = "timeout"
    """The call's time was over: while connecting, waiting for the answer, or reading it."""
    CONNECT = "connect"
    """No connection: refused, unreachable, reset while connecting."""
    DNS = "dns"
    """The host name does not resolve."""
    TLS = "tls"
    """The TLS handshake failed: certificate, protocol."""
    RESET = "reset"
    """The connection broke after the request may have been sent."""
    PROTOCOL = "protocol"
    """What came back is not HTTP, or its body cannot be decoded."""
    TOO_LARGE = "too_large"
    """The (decompressed) body is larger than the cap."""
    NO_ROOM = "no_room"
    """The answer came, but in its call's time there was no room to read it into."""
    FORBIDDEN_ADDRESS = "forbidden_address"
    """The host resolves to a private, loopback or link-local address and the profile does not allow these."""


class TransportFault(OutsideError):  # noqa: N818 - a fault is an outcome to classify, the field's word for it
    """An exchange that ended without a whole answer.

    Attributes:
        kind: How it failed.
        sent: False only when it is certain that no byte of the request reached the server.
    """

    def __init__(self, kind: FaultKind, message: str, *, sent: bool) -> None:
        super().__init__(without_secrets(message))  # libraries put URLs into their messages
        self.kind = kind
        self.sent = sent


def timed_out(*, sent: bool, connected: bool = True) -> TransportFault:
    """Return the fault of a call that timed out; ``connected``: if sent, it certainly had a connection."""
    if sent:
        phase = "waiting for the answer" if connected else "while connecting or waiting for the answer"
    else:
        phase = "while connecting"
    return TransportFault(FaultKind.TIMEOUT, f"timed out {phase}", sent=sent)


def no_connection_free() -> TransportFault:
    """Return the fault of a call that timed out waiting for one of ``max_connections``."""
    return TransportFault(FaultKind.TIMEOUT, "no connection became free in time", sent=False)


def too_large(max_bytes: int) -> TransportFault:
    """Return the fault of an answer that is larger than ``max_response_bytes``."""
    return TransportFault(FaultKind.TOO_LARGE, f"the answer is larger than {max_bytes} bytes", sent=True)


def no_room() -> TransportFault:
    """Return the fault of a call whose answer could not be read for lack of room."""
    message = "the answer came, but this worker had no memory to read it into before the call's time was over"
    return TransportFault(FaultKind.NO_ROOM, message, sent=True)


class Response(Struct, frozen=True):
    """A whole answer.

    Attributes:
        status: HTTP status.
        headers: Header names in lower case; repeated ones joined with ", ".
        body: The body, decompressed unless ``encoding`` says otherwise.
        encoding: How the body is still encoded, such as ``br``; empty if it is not.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    encoding: str = ""


class TransportOptions(Struct, frozen=True, kw_only=True):
    """What a transport is made with, once per API and process."""

    max_connections: int
    max_response_bytes: int
    allow_private_addresses: bool
    connect_timeout_s: float
    ca_file: str | None = None
    session_factory: str | None = None
    """``module:callable`` that returns a requests.Session; only for the requests transport."""
    answers: AnswersOfApi | None = None
    """Where large answers get the room that they are read into; None: there is no bound but that of each."""
    reuse_connections: bool = True
    """False: each exchange has a connection of its own."""
    exact_headers: tuple[str, ...] = ()
    """Header names whose case must be kept; calls without any of them may have the names written in another case."""


class Transport(Protocol):
    """One API's pooled sessions in one process. Made, used and closed on one event loop."""

    def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, timeout_s: float
    ) -> Coroutine[Any, Any, Response]:
        """Make one exchange within ``timeout_s`` seconds, all of it: connecting, sending, waiting, reading.

        While an answer waits for room, that time stands still; where it cannot, the call ends as NO_ROOM.

        Raises:
            TransportFault: No whole answer came.
            asyncio.CancelledError: The caller gave up; the connection is dropped or returned to the pool in good order.
        """
        ...

    async def warm_up(self, url: str) -> None:
        """Do what the first call to ``url`` would be late for: names, clients, threads. Sends nothing there."""
        ...

    async def aclose(self) -> None:
        """Close every connection. Idempotent; the interpreter exits cleanly afterwards."""
        ...
