"""RetryInfo: how long to wait as Google's APIs say it, in the body: ``error.details[].retryDelay``, ``"34.07s"``."""

from __future__ import annotations

import re
from typing import Any

from msgspec import DecodeError, Struct, json
from msgspec.structs import replace

from callmill.limits.feedback import Feedback
from callmill.limits.headers import ABSURD_RETRY_AFTER_S, LONGEST_RETRY_AFTER_S

_TYPE = b"google.rpc.RetryInfo"
_LONGEST_BODY = 65_536
_MOST_DETAILS = 64
_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)s")


class _Error(Struct):
    details: list[dict[str, Any]] = []


class _Answer(Struct):
    error: _Error


_decoders = (json.Decoder(_Answer).decode, json.Decoder(list[_Answer]).decode)
"""Streams of such APIs answer with a list."""


def with_body(feedback: Feedback | None, body: bytes) -> Feedback | None:
    """Return what the headers of an answer say, with the wait that its body asks for where they name none."""
    if _TYPE not in body[:_LONGEST_BODY] or (feedback is not None and feedback.retry_after_s is not None):
        return feedback
    asked_s = _asked_s(body)
    if asked_s is None:
        return feedback
    absurd = asked_s > LONGEST_RETRY_AFTER_S
    wait_s = ABSURD_RETRY_AFTER_S if absurd else asked_s
    return (
        Feedback(wait_s, absurd=absurd) if feedback is None else replace(feedback, retry_after_s=wait_s, absurd=absurd)
    )


def _asked_s(body: bytes) -> float | None:
    if len(body) > _LONGEST_BODY:
        return None
    for detail in _details(body)[:_MOST_DETAILS]:
        delay = detail.get("retryDelay")
        if isinstance(delay, str) and (match := _DURATION.fullmatch(delay)):
            return float(match[1])
    return None


def _details(body: bytes) -> list[dict[str, Any]]:
    for decode in _decoders:
        try:
            answer = decode(body)
        except (DecodeError, RecursionError, UnicodeDecodeError):
            continue
        answers = answer if isinstance(answer, list) else [answer]
        return [detail for one in answers[:1] for detail in one.error.details]
    return []
