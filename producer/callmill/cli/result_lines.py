"""The lines of the output: OpenAI's batch format, one line per outcome or bad line.

A line begins with its ``id``, which says whose it is: ``BATCH-INDEX`` of a job, ``BATCH-line-NUMBER`` of a bad line. So
the output itself tells what it has, whatever else is lost.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import Raw, Struct

from callmill.jobs import Outcome
from callmill.jobs.outcome import UNKNOWN_INDEX
from callmill.jobs.readable_body import text_or_base64

BAD_LINE = "bad_line"
_ID = re.compile(rb'\{"id":"[^"]*?-(line-)?(-?\d{1,10})"')
_LONGEST_ID = 128
_MOST_LINES = 2**31
"""A number beyond stands in a line that was damaged."""
_NO_ERROR = b'"error":null}\n'
_JSON_STARTS = ("{", "[")

_encode = msgspec.json.Encoder().encode


class _Response(Struct, frozen=True, omit_defaults=True):
    status_code: int
    request_id: str | None
    body: Raw | str | dict[str, str | None]
    headers: dict[str, str] = {}


class _Error(Struct, frozen=True, omit_defaults=True):
    code: str
    message: str
    line: int | None = None


class _ResultLine(Struct, frozen=True):
    id: str
    custom_id: str | None
    response: _Response | None
    error: _Error | None


def outcome_line(batch_id: str, outcome: Outcome) -> bytes:
    """Return the line of an outcome, with its line feed."""
    response = None
    if outcome.status is not None:
        response = _Response(outcome.status, outcome.request_id, _written(outcome), outcome.headers)
    error = None if outcome.error is None else _Error(outcome.error.code, outcome.error.message)
    return _encode(_ResultLine(f"{batch_id}-{outcome.index}", outcome.id, response, error)) + b"\n"


def bad_line(batch_id: str, number: int, custom_id: str | None, reason: str) -> bytes:
    """Return the line that reports a bad line of the input, with its line feed."""
    error = _Error(BAD_LINE, f"line {number}: {reason}", number)
    return _encode(_ResultLine(f"{batch_id}-line-{number}", custom_id, None, error)) + b"\n"


def read_id(line: bytes) -> tuple[bool, int] | None:
    """Tell whose line this is: whether a bad line's, and its index or number; None when it is no line of ours."""
    match = _ID.match(line, 0, _LONGEST_ID)
    if match is None or not UNKNOWN_INDEX <= (number := int(match[2])) < _MOST_LINES:
        return None
    return match[1] is not None, number


def is_failure(line: bytes) -> bool:
    """Say whether a line of ours reports an error."""
    return not line.endswith(_NO_ERROR)


def _written(outcome: Outcome) -> Raw | str | dict[str, str | None]:
    """Return a body as it stands when it is JSON, so that no number loses a digit, else as text, else in Base64."""
    if (raw := _as_json(outcome.body)) is not None:
        return raw
    readable = text_or_base64(outcome)
    if not isinstance(readable, str) or not readable.startswith(_JSON_STARTS):
        return readable
    raw = _as_json(readable.encode(errors="replace"))  # in another charset, or behind a byte order mark
    return readable if raw is None else raw


def _as_json(body: bytes) -> Raw | None:
    try:
        if not body.isascii():
            body.decode()
        raw: Any = msgspec.json.decode(body, type=Raw)
    except (ValueError, RecursionError):
        return None
    # Between JSON's tokens a line feed is white space, and inside of strings there is none.
    return Raw(bytes(raw).replace(b"\n", b" ").replace(b"\r", b" "))
