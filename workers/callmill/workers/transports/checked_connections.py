"""urllib3 connections that obey the port: addresses checked, targets untouched, breakable from another thread.

requests offers no way to hand a call's circumstances down to the socket; a thread makes one call at a time, so they are
kept per thread.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Any, Self

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from callmill.workers.transports.addresses import refuse_forbidden

_current = threading.local()


class CallInThread:
    """What the connections must know about the call that their thread makes.

    Attributes:
        target: The request target to send, byte for byte; None leaves it to urllib3.
        sent: Whether bytes of the request may have left.
    """

    def __init__(self, *, allow_private_addresses: bool, give_up_at_s: float) -> None:
        self.target: str | None = None
        self.allow_private_addresses = allow_private_addresses
        self.give_up_at_s = give_up_at_s
        self.sent = False
        self._lock = threading.Lock()
        self._broken = False
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        _current.call = self
        return self

    def __exit__(self, *exc: object) -> None:
        _current.call = None
        with self._lock:
            self._socket = None

    def remaining_s(self) -> float:
        """Seconds until the call's time is over; never 0, which sockets read as "do not block"."""
        return max(self.give_up_at_s - time.monotonic(), 0.001)

    def uses(self, sock: socket.socket | None) -> None:
        """The call now depends on this socket."""
        with self._lock:
            self._socket = sock
            if self._broken:
                _shut(sock)

    def break_off(self) -> None:
        """End the call from another thread: whatever its thread does on the socket fails at once."""
        with self._lock:
            self._broken = True
            _shut(self._socket)

    @property
    def broken_off(self) -> bool:
        """Whether somebody ended the call."""
        return self._broken


def _shut(sock: socket.socket | None) -> None:
    if sock is not None:
        with contextlib.suppress(OSError):
            # Not SSLSocket.shutdown, which takes the TLS state away from the thread that is using it.
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _call() -> CallInThread | None:
    return getattr(_current, "call", None)


class _Obedient(HTTPConnection):
    """The overrides that plain and TLS connections share."""

    def _new_conn(self) -> socket.socket:
        call = _call()
        check = call is not None and not call.allow_private_addresses and self.proxy is None
        if check:
            # First without connecting at all; then what was really connected to, since a name can change in between.
            with contextlib.suppress(OSError, UnicodeError):
                found = socket.getaddrinfo(self._dns_host, self.port, type=socket.SOCK_STREAM)
                refuse_forbidden(self.host, (str(info[4][0]) for info in found))
        sock = super()._new_conn()
        if check:
            try:
                refuse_forbidden(self.host, [sock.getpeername()[0]])
            except BaseException:
                sock.close()
                raise
        if call is not None:
            call.uses(sock)
        return sock

    def putrequest(self, method: str, url: str, skip_host: bool = False, skip_accept_encoding: bool = False) -> None:  # noqa: FBT001, FBT002 - urllib3's signature
        call = _call()
        if call is not None and call.target is not None and self.proxy is None:
            url = call.target
        super().putrequest(method, url, skip_host=skip_host, skip_accept_encoding=skip_accept_encoding)

    def send(self, data: Any) -> None:
        if self.sock is None and self.auto_open:  # As http.client does, but before the request counts as sent.
            self.connect()
        call = _call()
        if call is not None:
            call.uses(self.sock)
            call.sent = True
        super().send(data)


class ObedientHTTPConnection(_Obedient):
    """Plain."""


class ObedientHTTPSConnection(_Obedient, HTTPSConnection):
    """Over TLS."""


class ObedientHTTPConnectionPool(HTTPConnectionPool):
    """Makes plain connections."""

    ConnectionCls = ObedientHTTPConnection  # pyright: ignore[reportAssignmentType] - as urllib3 itself does it


class ObedientHTTPSConnectionPool(HTTPSConnectionPool):
    """Makes TLS connections."""

    ConnectionCls = ObedientHTTPSConnection  # pyright: ignore[reportAssignmentType] - as above


POOL_CLASSES: dict[str, type[HTTPConnectionPool]] = {
    "http": ObedientHTTPConnectionPool,
    "https": ObedientHTTPSConnectionPool,
}
