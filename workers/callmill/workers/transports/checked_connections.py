"""urllib3 connections that obey the port: addresses checked, targets untouched, breakable from another thread.

Nothing received for one request is left for the next: data waiting before a request is sent ends the connection, and
``StrictAnswer`` reads the answers.

requests offers no way to hand a call's circumstances down to the socket; a thread makes one call at a time, so they are
kept per thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from typing import Any, Self

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util.wait import wait_for_read, wait_for_write

from callmill.workers.transports.addresses import refuse_forbidden
from callmill.workers.transports.strict_answers import StrictAnswer

_PIECE_BYTES = 65536
_STUCK_S = 1.0
"""If the server answers and accepts no more of a body for this long, the rest is not sent."""

_current = threading.local()


class CallInThread:
    """What the connections must know about the call that their thread makes.

    Attributes:
        target: The request target to send, byte for byte; None leaves it to urllib3.
        in_foreign_hands: Whether the request was given to code that may use connections of its own.
        time: What ends the call when its time is over, on the event loop.
    """

    def __init__(self, *, allow_private_addresses: bool, give_up_at_s: float, time: asyncio.Timeout) -> None:
        self.target: str | None = None
        self.allow_private_addresses = allow_private_addresses
        self.give_up_at_s = give_up_at_s
        self.time = time
        self.in_foreign_hands = False
        self._sent = False
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

    @property
    def sent(self) -> bool:
        """Whether bytes of the request may have left; on connections that are not ours, nobody can tell."""
        return self._sent or self.in_foreign_hands

    def sends(self) -> None:
        """Take note that bytes of the request may leave from now on."""
        self._sent = True

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

    _fresh = True
    """Nothing was answered yet: until then, TLS may have session tickets to read, which are not an answer."""
    _head_sent = False
    _early = False
    _connecting = False

    def connect(self) -> None:
        self._connecting = True
        try:
            super().connect()
        finally:
            self._connecting = False
        self._fresh = True
        self._head_sent = False

    def _new_conn(self) -> socket.socket:
        call = _call()
        check = call is not None and not call.allow_private_addresses and self.proxy is None
        sock = self._to_a_checked_address() if check else super()._new_conn()
        if check:
            try:
                refuse_forbidden(self.host, [sock.getpeername()[0]])
            except BaseException:
                sock.close()
                raise
        if call is not None:
            call.uses(sock)
        return sock

    def _to_a_checked_address(self) -> socket.socket:
        """Connect to an address that was looked at: a moment later the name may lead elsewhere."""
        name, last = self._dns_host, None
        try:
            found = socket.getaddrinfo(name, self.port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        except UnicodeError:
            return super()._new_conn()  # which asks nobody for such a name, and says so
        addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
        refuse_forbidden(self.host, addresses)
        for address in addresses:
            self._dns_host = address
            try:
                return super()._new_conn()
            except (ConnectTimeoutError, NewConnectionError) as error:
                last = error
            finally:
                self._dns_host = name
        raise last or OSError(f"{name} has no address")

    def putrequest(self, method: str, url: str, skip_host: bool = False, skip_accept_encoding: bool = False) -> None:  # noqa: FBT001, FBT002 - urllib3's signature
        call = _call()
        if call is not None and call.target is not None and self.proxy is None:
            url = call.target
        self._head_sent = self._early = False
        super().putrequest(method, url, skip_host=skip_host, skip_accept_encoding=skip_accept_encoding)

    def send(self, data: Any) -> None:
        if self.sock is None and self.auto_open:  # As http.client does, but before the request counts as sent.
            self.connect()
        if self._head_sent:
            self._send_body(data)
            return
        if self.sock is not None and not self._fresh and wait_for_read(self.sock, 0):
            self._start_again()
        call = _call()
        if call is not None:
            call.uses(self.sock)
            if not self._connecting:  # a proxy's CONNECT is none of the request
                call.sends()
        super().send(data)
        self._head_sent = True

    def _start_again(self) -> None:
        """Reconnect: the server closed the connection, or sent unrequested data, since it was chosen."""
        if self.proxy is not None:
            raise ConnectionResetError("the proxy sent data or closed the connection before the request")
        if self.sock is not None:
            self.sock.close()
        self.sock = None
        self.connect()

    def _send_body(self, data: Any) -> None:
        """Send a body, and notice an answer that comes before its end."""
        if not isinstance(data, bytes | bytearray | memoryview):
            super().send(data)
            return
        whole = memoryview(data)
        for start in range(0, len(whole), _PIECE_BYTES):
            may_look = not self._fresh or not isinstance(self.sock, ssl.SSLSocket)
            self._early = self._early or (may_look and wait_for_read(self.sock, 0))
            if self._early and not wait_for_write(self.sock, _STUCK_S):
                raise BrokenPipeError  # which makes urllib3 read the answer
            try:
                super().send(whole[start : start + _PIECE_BYTES])
            except TimeoutError:
                if not wait_for_read(self.sock, 0):
                    raise
                self._early = True  # the answer came while the server took no more, or before a look was allowed
                raise BrokenPipeError from None

    def response_class(self, sock: socket.socket, debuglevel: int = 0, method: str | None = None) -> StrictAnswer:  # type: ignore[override] # noqa: ARG002 - a class to typeshed; http.client only calls it, like this
        self._fresh = False
        return StrictAnswer(sock, method, early=self._early, end_connection=self.close)


class ObedientHTTPConnection(_Obedient):
    """Plain."""


class ObedientHTTPSConnection(_Obedient, HTTPSConnection):  # pyright: ignore[reportIncompatibleVariableOverride] - response_class, as above
    """Over TLS."""


class _ObedientPool(HTTPConnectionPool):
    """The override that both pools share."""

    def urlopen(self, *args: Any, **kwargs: Any) -> Any:
        if (call := _call()) is not None:
            call.in_foreign_hands = False
        return super().urlopen(*args, **kwargs)


class ObedientHTTPConnectionPool(_ObedientPool):
    """Makes plain connections."""

    ConnectionCls = ObedientHTTPConnection  # pyright: ignore[reportAssignmentType] - as urllib3 itself does it


class ObedientHTTPSConnectionPool(_ObedientPool, HTTPSConnectionPool):
    """Makes TLS connections."""

    ConnectionCls = ObedientHTTPSConnection  # pyright: ignore[reportAssignmentType] - as above


OBEDIENT = (ObedientHTTPConnection, ObedientHTTPSConnection)
POOL_CLASSES: dict[str, type[HTTPConnectionPool]] = {
    "http": ObedientHTTPConnectionPool,
    "https": ObedientHTTPSConnectionPool,
}
