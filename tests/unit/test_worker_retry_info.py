"""Waits that answers ask for in other words than Retry-After: in milliseconds, as a date, in the body."""

from __future__ import annotations

import json

import pytest
from verdict_kit import judge

from callmill.limits.headers import read_feedback
from callmill.workers.throttling import Throttled

NOON = "Sat, 01 Jan 2050 12:00:00 GMT"


def gemini(*details: object) -> bytes:
    """Return a body as Gemini answers 429."""
    return json.dumps({"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "details": list(details)}}).encode()


def retry_info(delay: object) -> dict[str, object]:
    """Return the detail that says how long to wait."""
    return {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}


@pytest.mark.parametrize(
    ("body", "after_s"),
    [
        (
            gemini({"@type": "type.googleapis.com/google.rpc.Help", "links": []}, retry_info("34.074824224s")),
            34.074824224,
        ),
        (b"[" + gemini(retry_info("3s")) + b"]", 3.0),
        (gemini(retry_info("999999999s")), 3600.0),
        (gemini(retry_info("-3s"), retry_info(7), retry_info("soon")), None),
        (b'{"error": {"details": {"google.rpc.RetryInfo": 1}}}', None),
        (b'{"error": "google.rpc.RetryInfo', None),
        (b"[" * 60_000 + b"google.rpc.RetryInfo", None),
    ],
)
def test_retry_info_in_the_body(body, after_s):
    """The body's RetryInfo says how long to wait; what is none, or is broken, says nothing."""
    verdict = judge(429, body=body)
    assert isinstance(verdict, Throttled)
    assert verdict.after_s == after_s


def test_the_header_goes_before_the_body():
    """Where the answer has Retry-After as well, that holds."""
    verdict = judge(429, {"retry-after": "5"}, body=gemini(retry_info("34s")))
    assert isinstance(verdict, Throttled)
    assert verdict.after_s == 5.0


@pytest.mark.parametrize("name", ["retry-after-ms", "x-ms-retry-after-ms"])
def test_milliseconds(name):
    """Azure's headers in milliseconds go before Retry-After."""
    feedback = read_feedback({name: "1500", "retry-after": "2"})
    assert feedback is not None
    assert feedback.retry_after_s == 1.5


def test_a_reset_as_an_http_date():
    """A reset that is a date is held against the answer's own."""
    headers = {"date": NOON, "x-ratelimit-remaining": "0", "x-ratelimit-reset": NOON.replace("12:00:00", "12:00:42")}
    feedback = read_feedback(headers)
    assert feedback is not None
    assert [seen.reset_s for seen in feedback.observations] == [42.0]
