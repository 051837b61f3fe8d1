"""What pyreqwest raises, told in the port's words.

pyreqwest's classes alone do not say in which phase a call failed: an overall time-out comes as ConnectTimeoutError, a
reset after the request as ConnectError. The chain of causes, which is reqwest's and hyper's own, does.
"""

from __future__ import annotations

from pyreqwest.exceptions import (
    BuilderError,
    ClientClosedError,
    DecodeError,
    DetailedPyreqwestError,
    NetworkError,
    PoolTimeoutError,
    PyreqwestError,
    RequestError,
    RequestTimeoutError,
)

from callmill.workers.transports.port import FaultKind, TransportFault, timed_out

_CONNECTING = "client error (Connect)"
_BODY_FROM_CONNECTION = "error reading a body from connection"
_BROKEN_FRAMING = ("invalid chunk", "invalid header")
_TCP_CAUSES = ("tcp connect error", "os error", "eof", "connection closed")


def fault_of(error: BaseException, *, connects_in_time: bool = True) -> TransportFault | None:
    """The fault that an exception from pyreqwest stands for; None when it does not stem from an exchange.

    ``connects_in_time``: connecting has its own time-out, which ends before the call's. Without one, it is unknown
    whether the call was sent.
    """
    if isinstance(error, BuilderError) or (isinstance(error, ValueError) and not isinstance(error, PyreqwestError)):
        return TransportFault(FaultKind.PROTOCOL, f"the request cannot be made: {_text(error)}", sent=False)
    if not isinstance(error, PyreqwestError):
        return None
    causes = _causes(error)
    connecting = _CONNECTING in causes
    sent = not (connecting or isinstance(error, PoolTimeoutError))
    if isinstance(error, RequestTimeoutError):
        return timed_out(sent=sent, connected=connects_in_time)
    return TransportFault(_kind(error, causes, connecting=connecting), _text(error), sent=sent)


def _kind(error: PyreqwestError, causes: list[str], *, connecting: bool) -> FaultKind:
    if connecting:
        return _connecting_kind(causes)
    if _BODY_FROM_CONNECTION in causes:
        broken = any(sign in cause.lower() for cause in causes for sign in _BROKEN_FRAMING)
        return FaultKind.PROTOCOL if broken else FaultKind.RESET
    if "error decoding response body" in causes or isinstance(error, DecodeError):
        return FaultKind.PROTOCOL
    if isinstance(error, NetworkError | ClientClosedError) or type(error) is RequestError:
        return FaultKind.RESET
    return FaultKind.PROTOCOL


def _connecting_kind(causes: list[str]) -> FaultKind:
    text = " ".join(causes).lower()
    if "dns error" in text:
        return FaultKind.DNS
    if any(cause in text for cause in _TCP_CAUSES):
        return FaultKind.CONNECT
    return FaultKind.TLS


def _causes(error: PyreqwestError) -> list[str]:
    if not isinstance(error, DetailedPyreqwestError):
        return []
    return [cause["message"] for cause in error.details.get("causes") or ()]


def _text(error: BaseException) -> str:
    """The innermost cause: the outer ones repeat the URL, whose query may hold a secret."""
    causes = _causes(error) if isinstance(error, PyreqwestError) else []
    summary = error.message if isinstance(error, PyreqwestError) else str(error)
    return f"{summary}: {causes[-1]}" if len(causes) > 1 else summary
