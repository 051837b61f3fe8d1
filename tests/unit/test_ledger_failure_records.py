"""How failures are written by workers and read by whoever asks."""

from __future__ import annotations

import struct

import pytest

from callmill.jobs.wire import WireOutcome, assigned_id
from callmill.ledger.failure_records import decode_failures, encode_failure


def outcome(body: bytes = b"oops", message: str | None = "500", **headers: str) -> WireOutcome:
    """Return a failed outcome."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return WireOutcome(7, "j7", 500, body, named, "http_500", message, 3, 1_500, 2_250_000)


def kept(sent: bytes, failed_ms: float) -> bytes:
    """Return a record as the ledger's script keeps it."""
    head, answer = struct.unpack(">IH", sent[:6])
    assert len(sent) == 6 + head + answer
    return struct.pack(">IHd", head, answer, failed_ms) + sent[6:]


def test_a_failure_comes_back_as_it_was():
    """Code, message, status, answer, attempts and times of a failure are those of its outcome, in seconds."""
    job = decode_failures("b", kept(encode_failure("crm", outcome()), 9_500.0), failed=True)
    assert (job.id, job.index, job.api, job.failed, len(job.failures)) == ("j7", 7, "crm", True, 1)
    last = job.last
    assert (last.code, last.message, last.status, last.answer, last.answer_bytes) == ("http_500", "500", 500, "oops", 4)
    assert (last.attempts, last.started_at, last.latency, last.failed_at) == (3, 1.5, 2.25, 9.5)


def test_failures_of_a_job_are_told_in_their_order():
    """What a job failed of again and again is told oldest first, and names are those of the newest."""
    bodies = (b"", b"second", b"x" * 600)
    data = b"".join(kept(encode_failure("crm", outcome(body)), 1000.0 * at) for at, body in enumerate(bodies, 1))
    job = decode_failures("b", data, failed=False)
    assert [(failure.answer, failure.answer_bytes, failure.failed_at) for failure in job.failures] == [
        ("", 0, 1.0),
        ("second", 6, 2.0),
        ("x" * 512, 600, 3.0),
    ]
    assert not job.failed


@pytest.mark.parametrize(
    ("headers", "request_id"),
    [
        ({}, None),
        ({"request_id": "r2"}, "r2"),
        ({"x_request_id": "r1", "request_id": "r2"}, "r1"),
        ({"x_request_id": "", "request_id": "r2"}, "r2"),
        ({"x_request_id": "r" * 500}, "r" * 128),
    ],
)
def test_the_apis_own_name_of_a_request_is_kept(headers, request_id):
    """An answer's request id is kept under either name, cut where it is long."""
    job = decode_failures("b", kept(encode_failure("crm", outcome(**headers)), 1.0), failed=True)
    assert job.last.request_id == request_id


def test_a_failure_is_small_whatever_the_outcome_says():
    """Messages are cut; a failure without message or code has empty ones, and a job without an id its assigned one."""
    long = decode_failures("b", kept(encode_failure("crm", outcome(message="m" * 900)), 1.0), failed=True)
    assert long.last.message == "m" * 500
    bare = WireOutcome(7, None, None, b"\xff", {}, None, None, 0, 0, 0)
    job = decode_failures("b", kept(encode_failure("crm", bare), 1.0), failed=True)
    assert (job.id, job.last.code, job.last.message, job.last.status) == (assigned_id("b", 7), "", "", None)
    assert job.last.answer == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("body", "content_type", "text"),
    [
        ("Größe".encode("latin-1"), "text/plain; charset=ISO-8859-1", "Größe"),
        ("日本".encode("shift_jis"), "text/html; charset=Shift_JIS", "日本"),
        ("Größe".encode(), "text/plain; charset=utf-8", "Größe"),
        ("Größe".encode(), "text/plain", "Größe"),
        ("日".encode("shift_jis") * 600, "text/html; charset=Shift_JIS", "日" * 170 + "\ufffd"),
    ],
)
def test_a_failure_tells_its_answer_in_its_charset(body, content_type, text):
    """The beginning of an answer is told as text, whatever its charset, and its length is that of the whole."""
    sent = encode_failure("crm", outcome(body, content_type=content_type))
    last = decode_failures("b", kept(sent, 1.0), failed=True).last
    assert (last.answer, last.answer_bytes) == (text, len(body))
