"""Answers as bytes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from email.utils import formatdate
from http import HTTPStatus
from typing import Any

import msgspec

from callmill.simulator.connection import Answer, Ending, Request

NOT_HTTP = b"\x15\x03\x01\x00\x02\x02\x28 this is not HTTP\r\n"
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}
_ENCODER = msgspec.json.Encoder()


def json_bytes(value: Any) -> bytes:
    """Encode a JSON body."""
    return _ENCODER.encode(value)


def render(status: int, body: bytes, headers: Iterable[tuple[str, str]] = (), *, length: int | None = None) -> bytes:
    """Return a whole answer with a JSON body.

    Args:
        status: HTTP status.
        body: Body; ``length`` claims another length than it has.
        headers: Extra headers.
        length: The ``Content-Length``; the body's when None.
    """
    lines = [
        _STATUS_LINES.get(status) or f"HTTP/1.1 {status} Unknown\r\n",
        f"content-type: application/json\r\ncontent-length: {len(body) if length is None else length}\r\n",
        f"date: {_date()}\r\n",
    ]
    lines += [f"{name}: {value}\r\n" for name, value in headers]
    lines.append("\r\n")
    return "".join(lines).encode("latin-1") + body


def answer(request: Request, status: int, body: bytes, headers: Iterable[tuple[str, str]] = ()) -> Answer:
    """Return an answer that fits the request: no body for HEAD, the connection kept if the client wants it."""
    ending = Ending.KEEP if request.keep_alive else Ending.CLOSE
    if ending is Ending.CLOSE:
        headers = [*headers, ("connection", "close")]
    sent = b"" if request.method == "HEAD" else body
    return Answer(render(status, sent, headers, length=len(body)), ending)


def refuse(status: int, message: str) -> bytes:
    """Return the answer to what is no request that can be handled; the connection closes after it."""
    return render(status, error_body(message, "invalid_request"), [("connection", "close")])


def error_body(message: str, kind: str) -> bytes:
    """Return the body of an error, in the shape that most JSON APIs use."""
    return json_bytes({"error": {"message": message, "type": kind}})


class _DateCache:
    second = -1
    text = ""


def _date() -> str:
    second = int(time.time())
    if second != _DateCache.second:
        _DateCache.second, _DateCache.text = second, formatdate(second, usegmt=True)
    return _DateCache.text
