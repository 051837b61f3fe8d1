"""What requests and urllib3 raise, told in the port's words."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator

import requests.exceptions as rx
import urllib3.exceptions as ux

from callmill.workers.transports.port import FaultKind, TransportFault, timed_out

_OUTSIDE = (rx.RequestException, ux.HTTPError, OSError, http.client.HTTPException)
_UNMAKEABLE = (
    rx.InvalidURL,
    rx.InvalidSchema,
    rx.MissingSchema,
    rx.URLRequired,
    rx.InvalidHeader,
    rx.InvalidJSONError,
    rx.UnrewindableBodyError,
    ux.LocationValueError,
    ux.InvalidHeader,
    ux.UnrewindableBodyError,
    http.client.InvalidURL,
)
_BY_CAUSE: tuple[tuple[tuple[type[BaseException], ...], FaultKind], ...] = (
    ((ux.NameResolutionError,), FaultKind.DNS),
    ((ux.ConnectTimeoutError, ux.ReadTimeoutError, rx.Timeout, TimeoutError), FaultKind.TIMEOUT),
    ((ssl.SSLEOFError, ssl.SSLZeroReturnError), FaultKind.RESET),
    ((ssl.SSLError, ux.SSLError, rx.SSLError, ssl.CertificateError), FaultKind.TLS),
    ((ux.DecodeError, rx.ContentDecodingError, ux.InvalidChunkLength), FaultKind.PROTOCOL),
    ((http.client.RemoteDisconnected, http.client.IncompleteRead, ConnectionError), FaultKind.RESET),
    ((http.client.HTTPException, ux.HeaderParsingError, ux.ResponseError), FaultKind.PROTOCOL),
    ((ux.ProtocolError, rx.ConnectionError, rx.ChunkedEncodingError, ux.ProxyError, OSError), FaultKind.RESET),
)


def fault_of(error: BaseException, *, sent: bool) -> TransportFault | None:
    """The fault that an exception stands for; None when it does not stem from an exchange."""
    if isinstance(error, TransportFault):
        return error
    if isinstance(error, _UNMAKEABLE) or (isinstance(error, ValueError) and not isinstance(error, _OUTSIDE)):
        # The same classes cover requests that cannot be written and answers that cannot be read.
        what = "the answer is malformed" if sent else "the request cannot be made"
        return TransportFault(FaultKind.PROTOCOL, f"{what}: {error}", sent=sent)
    if not isinstance(error, _OUTSIDE):
        return None
    chain = list(_chain(error))
    kind = _kind(chain)
    if kind is FaultKind.TIMEOUT:
        return timed_out(sent=sent)
    if kind is FaultKind.RESET and not sent:
        kind = FaultKind.CONNECT
    return TransportFault(kind, f"{type(chain[-1]).__name__}: {chain[-1]}", sent=sent)


def _kind(chain: list[BaseException]) -> FaultKind:
    # A refused connection is a ConnectTimeoutError to urllib3's class tree: NewConnectionError is derived from it.
    chain = [link for link in chain if type(link) is not ux.NewConnectionError]
    for types, kind in _BY_CAUSE:
        if any(isinstance(link, types) for link in chain):
            return kind
    return FaultKind.PROTOCOL if chain else FaultKind.CONNECT


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it wraps: requests and urllib3 wrap in ``args`` and ``reason``, Python in ``__cause__``."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        link = waiting.pop(0)
        if id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        inner = [link.__cause__, getattr(link, "reason", None), *link.args]
        waiting.extend(item for item in inner if isinstance(item, BaseException))
