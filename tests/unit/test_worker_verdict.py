"""Verdicts: what an answer or a fault means."""

from __future__ import annotations

import pytest
from verdict_kit import DEFAULT, judge, rules

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
    verdict = judge(status, {"location": "/there"}, method)
    assert isinstance(verdict, Redirected)
    assert (verdict.code, verdict.location, verdict.not_followed) == (f"http_{status}", "/there", "")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_writes_follow_redirects_that_keep_the_method(status, method):
    """A call that may change something goes elsewhere only by 307 and 308, which say that it is to be the same call."""
    verdict = judge(status, {"location": "/there"}, method)
    assert isinstance(verdict, Redirected)
    assert bool(verdict.not_followed) == (status not in (307, 308))
    assert verdict.not_followed == "" or method in verdict.not_followed


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_redirects_can_be_refused(method):
    """A profile may have no redirect followed."""
    verdict = judge(308, {"location": "/there"}, method, by=rules(follow_redirects=False))
    assert isinstance(verdict, Redirected)
    assert "follow_redirects" in verdict.not_followed


def test_redirect_to_nowhere_fails():
    """A redirect without a location is a failure."""
    assert judge(302) == Failed("http_302", "302 Found")


@pytest.mark.parametrize("kind", FaultKind)
def test_faults_fall_into_two_classes(kind):
    """Trouble on the way may pass; an answer too large, or one that came and was not read, is not asked for again."""
    verdict = classify_fault("GET", TransportFault(kind, "what happened", sent=True), DEFAULT)
    lasting = kind in (FaultKind.TOO_LARGE, FaultKind.NO_ROOM, FaultKind.FORBIDDEN_ADDRESS)
    assert verdict == (Failed if lasting else Retryable)(kind.value, "what happened")


def test_request_that_cannot_be_written_fails():
    """A request that cannot be written as HTTP is the job's own mistake: another attempt would end the same."""
    fault = TransportFault(FaultKind.PROTOCOL, "no header", sent=False)
    assert classify_fault("POST", fault, DEFAULT) == Failed("protocol", "no header")


UNSURE = [FaultKind.TIMEOUT, FaultKind.RESET, FaultKind.PROTOCOL]
"""Faults after which a call that was sent may have been executed."""


@pytest.mark.parametrize("kind", UNSURE)
@pytest.mark.parametrize("method", ["POST", "PATCH", "LOCK"])
def test_what_may_have_been_executed_is_not_repeated(kind, method):
    """A call that is not idempotent and was sent is not made again, and the reason names the remedy."""
    verdict = classify_fault(method, TransportFault(kind, "no answer", sent=True), DEFAULT)
    assert isinstance(verdict, Retryable)
    assert method in verdict.not_repeated
    assert 'idempotency = "by-key" if x honours Idempotency-Key' in verdict.not_repeated


@pytest.mark.parametrize(
    ("method", "sent", "keys"),
    [
        ("GET", True, {}),
        ("PUT", True, {}),
        ("DELETE", True, {}),
        ("POST", False, {}),
        ("POST", True, {"idempotency": "by-key"}),
        ("POST", True, {"idempotency": "always"}),
    ],
)
def test_what_may_be_repeated(method, sent, keys):
    """Idempotent methods, calls that were not sent, and whatever the profile allows are made again after any fault."""
    for kind in UNSURE if sent else [FaultKind.TIMEOUT, FaultKind.CONNECT, FaultKind.DNS, FaultKind.TLS]:
        verdict = classify_fault(method, TransportFault(kind, "no answer", sent=sent), rules(**keys))
        assert verdict == Retryable(kind.value, "no answer")


@pytest.mark.parametrize(("status", "repeated"), [(500, True), (502, True), (503, True), (408, True), (504, False)])
def test_answers_of_which_a_post_is_repeated(status, repeated):
    """An answer is an answer, whatever the method; a gateway's time-out is a time-out."""
    verdict = judge(status, method="POST")
    assert isinstance(verdict, Retryable)
    assert (verdict.not_repeated == "") is repeated
    assert judge(status, method="POST", by=rules(idempotency="by-key")) == Retryable(verdict.code, verdict.message)
