"""Which 503s are a limiter's."""

from __future__ import annotations

from typing import Any, cast

from callmill.jobs.wire import WireJob
from callmill.workers.busy_answers import BusyAnswers
from callmill.workers.call import Call
from callmill.workers.throttling import Throttled
from callmill.workers.transports.port import Response
from callmill.workers.verdict import SUCCEEDED, Retryable

PAGE = b"<html><head><title>503 Service Temporarily Unavailable</title></head><body><hr><center>nginx</center></body>"
BUSY = Retryable("http_503", "503 Service Unavailable")


class Play:
    """One API's answers, at times that the test sets."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.answers = BusyAnswers(lambda: self.now_s)

    def took(self, call: Call) -> None:
        """The API takes a call."""
        self.answers.judged(call, SUCCEEDED, Response(200, {}, b""))

    def refuses(self, call: Call, body: bytes = PAGE) -> bool:
        """Whether a 503 with this body counts as a refusal."""
        return isinstance(self.answers.judged(call, BUSY, Response(503, {}, body)), Throttled)


def call_of() -> Call:
    """Return a call of its own job."""
    return Call(WireJob("GET", "/x"), cast("Any", None), 0, 0, "k")


def test_a_page_of_nginx_beside_calls_that_are_taken_is_a_refusal():
    """A 503 with nginx's page counts as a refusal within a second of a call that was taken, and later does not."""
    play = Play()
    assert not play.refuses(call_of())
    play.took(call_of())
    assert play.refuses(call_of())
    play.now_s += 1.1
    assert not play.refuses(call_of())


def test_a_503_of_an_application_is_none():
    """Whatever else is taken, a 503 with another body is a failure of the call: no API is slowed down for it."""
    play = Play()
    play.took(call_of())
    assert not play.refuses(call_of(), b'{"error": "temporarily unavailable"}')
    assert not play.refuses(call_of(), b"")
    assert not play.refuses(call_of(), b" " * 5000 + PAGE)


def test_a_limiter_that_took_a_refused_call_is_believed_for_a_minute():
    """When a refused call is taken later, 503s count for a minute, though no other call is taken."""
    play, call = Play(), call_of()
    play.took(call_of())
    assert play.refuses(call)
    play.took(call)
    play.now_s += 59
    assert play.refuses(call_of())
    play.now_s += 2
    assert not play.refuses(call_of())


def test_a_job_that_gets_many_is_in_trouble_itself():
    """After four 503s of one job none counts for ten minutes, of no job."""
    play, call = Play(), call_of()
    play.took(call_of())
    assert [play.refuses(call) for _ in range(5)] == [True] * 4 + [False]
    play.now_s += 599
    play.took(call_of())
    assert not play.refuses(call_of())
    play.now_s += 2
    play.took(call_of())
    assert play.refuses(call_of())
