"""How the ledger keeps failures: written by workers, put together by ``commit.lua``, read by whoever asks.

A worker sends ``head length (4 bytes, big-endian) | answer length (2) | head (msgpack) | answer`` for each failed job;
the script puts the time of Redis behind the lengths (8 bytes, a float, ms), and the record behind the job's earlier
ones. The answer stands outside the head, so that the script can leave it out.
"""

from __future__ import annotations

import struct

import msgspec
from msgspec import Struct

from callmill.jobs.body_text import text_of
from callmill.jobs.failure import FailedJob, Failure
from callmill.jobs.wire import WireOutcome, assigned_id

ANSWER_BYTES = 512
"""What is kept of an answer: enough to read an error message, and bounded where bodies are megabytes."""

_MESSAGE_CHARACTERS, _REQUEST_ID_CHARACTERS = 500, 128
_SENT = struct.Struct(">IH")
_KEPT = struct.Struct(">IHd")


class _Head(Struct, array_like=True, frozen=True, gc=False):
    index: int
    id: str | None
    api: str
    code: str
    message: str
    status: int | None
    answer_bytes: int
    request_id: str | None
    attempts: int
    started_ms: int
    latency_us: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Head)


def encode_failure(api: str, outcome: WireOutcome) -> bytes:
    """Return what a worker sends of a failed outcome."""
    headers = outcome.headers
    request_id = headers.get("x-request-id") or headers.get("request-id")
    head = _encoder.encode(
        _Head(
            outcome.index,
            outcome.id,
            api,
            outcome.error_code or "",
            (outcome.error_message or "")[:_MESSAGE_CHARACTERS],
            outcome.status,
            len(outcome.body),
            request_id and request_id[:_REQUEST_ID_CHARACTERS],
            outcome.attempts,
            outcome.started_ms,
            outcome.latency_us,
        )
    )
    answer = _excerpt(outcome)
    return _SENT.pack(len(head), len(answer)) + head + answer


def _excerpt(outcome: WireOutcome) -> bytes:
    """Return the beginning of the answer in UTF-8."""
    answer, content_type = outcome.body[:ANSWER_BYTES], outcome.headers.get("content-type")
    if answer.isascii() or content_type is None or "charset" not in content_type.lower():
        return answer
    return text_of(answer, content_type).encode(errors="replace")[:ANSWER_BYTES]


def decode_failures(batch_id: str, data: bytes, *, failed: bool) -> FailedJob:
    """Return the job whose failures the ledger has as these bytes; ``failed``: whether it counts as failed now."""
    failures, at = [], 0
    while True:
        head_length, answer_length, failed_ms = _KEPT.unpack_from(data, at)
        answer_at = at + _KEPT.size + head_length
        head = _decoder.decode(data[at + _KEPT.size : answer_at])
        at = answer_at + answer_length
        failures.append(_failure(head, data[answer_at:at], failed_ms))
        if at >= len(data):
            break
    job_id = assigned_id(batch_id, head.index) if head.id is None else head.id
    return FailedJob(id=job_id, index=head.index, api=head.api, failed=failed, failures=failures)


def _failure(head: _Head, answer: bytes, failed_ms: float) -> Failure:
    return Failure(
        code=head.code,
        message=head.message,
        status=head.status,
        answer=answer.decode(errors="replace"),
        answer_bytes=head.answer_bytes,
        request_id=head.request_id,
        attempts=head.attempts,
        started_at=head.started_ms / 1e3,
        latency=head.latency_us / 1e6,
        failed_at=failed_ms / 1e3,
    )
