"""Verdicts: what an answer or a fault means."""

from __future__ import annotations

import pytest
from verdict_kit import judge, rules

from callmill.workers.throttling import Throttled
from callmill.workers.transports.port import FaultKind, TransportFault
from callmill.workers.verdict import (
    SUCCEEDED,
    Failed,
    Redirected,
    Retryable,
    classify_fault,
)


@pytest.mark.parametrize("status", range(200, 300))
def test_2xx_succeeds(status):
    """Every 2xx is a success."""
    assert judge(status) == SUCCEEDED


@pytest.mark.parametrize("status", [408, 425, 500, 502, 503, 504, 529])
def test_passing_trouble_is_retryable(status):
    """Statuses that tell of passing trouble are worth another attempt, not before Retry-After."""
    verdict = judge(status, {"retry-after": "7"})
    assert isinstance(verdict, Retryable)
    assert (verdict.code, verdict.after_s) == (f"http_{status}", 7.0)
    assert judge(status).after_s == 0.0


@pytest.mark.parametrize("status", [300, 304, 400, 401, 403, 404, 409, 410, 422, 451, 501, 505, 599])
def test_everything_else_fails(status):
    """Other statuses fail at once under a code of their own, with the phrase for people."""
    verdict = judge(status)
    assert isinstance(verdict, Failed)
    assert verdict.code == f"http_{status}"
    assert verdict.message.startswith(str(status))


def test_404_names_its_phrase():
    """The message is the status line that people know."""
    assert judge(404) == Failed("http_404", "404 Not Found")


@pytest.mark.parametrize(
    ("headers", "after_s"), [({}, None), ({"retry-after": "3"}, 3.0), ({"retry-after": "x"}, None)]
)
def test_429_throttles(headers, after_s):
    """A 429 pauses, for as long as it says; it is no failure of the job, whatever the profile lists."""
    assert judge(429, headers) == Throttled(after_s)
    assert judge(429, headers, by=rules(retry={"statuses": [429]})) == Throttled(after_s)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_reads_follow_redirects(status, method):
    """A redirect of a call that only reads is followed."""
    assert judge(status, {"location": "/there"}, method) == Redirected("/there")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_writes_follow_no_redirect(method):
    """A redirect of a call that may change something fails: nobody said that it may be made elsewhere."""
    assert judge(307, {"location": "/there"}, method) == Failed("http_307", "307 Temporary Redirect")


def test_redirect_to_nowhere_fails():
    """A redirect without a location is a failure."""
    assert judge(302) == Failed("http_302", "302 Found")


@pytest.mark.parametrize("kind", FaultKind)
def test_faults_fall_into_two_classes(kind):
    """Trouble on the way may pass; an answer too large and a forbidden address never do."""
    verdict = classify_fault(TransportFault(kind, "what happened", sent=True))
    lasting = kind in (FaultKind.TOO_LARGE, FaultKind.FORBIDDEN_ADDRESS)
    assert verdict == (Failed if lasting else Retryable)(kind.value, "what happened")


def test_request_that_cannot_be_written_fails():
    """A request that cannot be written as HTTP is the job's own mistake: another attempt would end the same."""
    fault = TransportFault(FaultKind.PROTOCOL, "no header", sent=False)
    assert classify_fault(fault) == Failed("protocol", "no header")
