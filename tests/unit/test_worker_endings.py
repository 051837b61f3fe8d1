"""What becomes of a call after an attempt, and what the attempt teaches the limiter."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from callmill.config.api_profile import ApiProfile
from callmill.jobs.traffic import NORMAL
from callmill.jobs.wire import WireJob, WireOutcome
from callmill.workers.attempt import Endings
from callmill.workers.call import Call, Postponed
from callmill.workers.request_builder import RequestBuilder
from callmill.workers.throttling import Throttled, ThrottleKind
from callmill.workers.transports.port import Response
from callmill.workers.verdict import SUCCEEDED, Failed, KeyRefused, Redirected, Retryable, Verdict

SLOT = cast("Any", SimpleNamespace(key=0))
ANSWER = Response(500, {"x-request-id": "r1", "x-other": "x"}, b"oops")
AGAIN = Retryable("http_500", "500 Internal Server Error")


class Attempts:
    """An API's endings, its limiter and its breaker, which only note what they are told."""

    key_names = ("A", "B")
    usable_keys = frozenset({0, 1})

    def __init__(self, breaker_wait_s: float = 0.0, **profile: Any) -> None:
        self.told: list[Any] = []
        self.breaker_wait_s = breaker_wait_s
        made = ApiProfile.model_validate({"name": "x", "base_url": "https://x.test/v1", **profile})
        this = cast("Any", self)
        self.endings = Endings(made, RequestBuilder(made), this, this, this, now=lambda: 0.0)

    def accepted(self, _slot: Any) -> None:
        """The limits took a call."""
        self.told.append("accepted")

    def refused(self, _slot: Any, after_s: float | None, reason: str, *, cause: str, **_: Any) -> None:
        """The limits refused a call."""
        self.told.append((after_s, reason, cause))

    def tell_refused(self, _kinds: str) -> None:
        """Other processes are told of a refusal."""

    def has_worked(self, _key: int) -> bool:
        """Say that every credential has worked before."""
        return True

    def holds(self, _key: int) -> bool:
        """Say that no credential is held."""
        return False

    def set_aside(self, key: int, seconds: float, reason: str, **_: Any) -> None:
        """A credential is used no more for a while."""
        self.told.append(("aside", key, seconds, reason))

    def wait_s(self) -> float:
        """How long until the API may be up again."""
        return self.breaker_wait_s

    def spent(self, _call: Call) -> None:
        """A call spent an attempt, and wants another one."""
        self.told.append("spent")

    def settled(self, _call: Call) -> None:
        """A call wants no other attempt."""
        self.told.append("settled")

    def end(
        self, call: Call, verdict: Verdict, answer: Response | None = ANSWER, *, spared: bool = False
    ) -> WireOutcome | Postponed:
        """End an attempt."""
        return self.endings.of(call, SLOT, verdict, answer, spared=spared)


def call_of(attempts: int = 0) -> Call:
    """Return a call that has spent so many attempts."""
    owner = cast("Any", SimpleNamespace(traffic=NORMAL))
    call = Call(WireJob("GET", "/a", id="j"), owner, 3, 43, "")
    call.attempts, call.started_ms, call.latency_us = attempts, 77, 1234
    return call


def test_an_outcome_tells_the_call_and_its_answer():
    """An outcome has position, id, attempts, time, and of the answer what the profile keeps."""
    outcome = Attempts(keep_headers=["x-other"]).end(call_of(1), SUCCEEDED, Response(200, dict(ANSWER.headers), b"yes"))
    assert outcome == WireOutcome(43, "j", 200, b"yes", {"x-other": "x"}, None, None, 2, 77, 1234)


@pytest.mark.parametrize(
    ("headers", "body", "encoding", "kept"),
    [
        ({"content-type": "image/png"}, b"PNG", "", {"content-type": "image/png"}),
        ({"content-type": "application/json; charset=UTF-8", "x-more": "1"}, b"{}", "", {}),
        ({"content-type": "text/html", "content-encoding": "br"}, b"?", "br", {"content-type", "content-encoding"}),
        ({"content-type": "image/png", "content-encoding": "gzip"}, b"", "", {}),
        ({}, b"{}", "", {}),
    ],
)
def test_an_outcome_tells_what_its_body_is(headers, body, encoding, kept):
    """Whatever the profile keeps, an outcome has the coding of its body, and its type unless that is plain JSON."""
    outcome = Attempts(keep_headers=[]).end(call_of(), SUCCEEDED, Response(200, headers, body, encoding))
    assert isinstance(outcome, WireOutcome)
    assert outcome.headers == {name: headers[name] for name in kept}


def test_a_call_without_an_answer_has_an_outcome():
    """A fault that nothing mends fails the call after its attempt, and says nothing of limits."""
    api = Attempts()
    outcome = api.end(call_of(), Failed("tls", "no certificate"), None)
    assert outcome == WireOutcome(43, "j", None, b"", {}, "tls", "no certificate", 1, 77, 1234)
    assert api.told == []


@pytest.mark.parametrize("verdict", [SUCCEEDED, Failed("http_404", "404")])
def test_an_answer_that_ends_a_call_was_taken_by_the_limits(verdict):
    """Whether a call succeeds or fails for good, its answer tells the limiter that it was not refused."""
    api = Attempts()
    assert isinstance(api.end(call_of(), verdict), WireOutcome)
    assert api.told == ["accepted"]


def test_attempts_are_spent_one_by_one_until_the_last_fails_the_call():
    """Of so many attempts each but the last is followed by another one, after its backoff and what the API asks for."""
    api, call = Attempts(retry={"attempts": 3, "base": 1e-9, "cap": 1e-9}), call_of()
    for spent in (1, 2):
        ending = api.end(call, Retryable("http_500", "500", after_s=7.0))
        assert ending == Postponed("http_500", "500", 7.0)
        assert call.attempts == spent
    outcome = api.end(call, AGAIN)
    assert isinstance(outcome, WireOutcome)
    assert (outcome.error_code, outcome.attempts, outcome.status, outcome.body) == ("http_500", 3, 500, b"oops")
    assert api.told == ["spent", "spent", "settled"]


def test_the_backoff_is_within_its_bounds_and_grows():
    """Without a word of the API the delay is drawn from the profile's backoff for that attempt."""
    api = Attempts(retry={"attempts": 9, "base": 10, "cap": 25})
    for spent, most_s in ((0, 10), (1, 20), (2, 25), (5, 25)):
        delays_s = [cast("Postponed", api.end(call_of(spent), AGAIN)).delay_s for _ in range(300)]
        assert 0.8 * most_s < max(delays_s) <= most_s
        assert min(delays_s) < 0.2 * most_s


@pytest.mark.parametrize(("after_s", "delay_s"), [(0.0, 4.0), (9.0, 9.0)])
def test_a_spared_failure_spends_nothing(after_s, delay_s):
    """While the API seems down a failure spends no attempt; the next one waits for the breaker, or as the API asks."""
    api, call = Attempts(breaker_wait_s=4.0, retry={"attempts": 1}), call_of(5)
    ending = api.end(call, Retryable("http_503", "503", after_s=after_s), spared=True)
    assert ending == Postponed("http_503", "503", delay_s, spends_attempt=False)
    assert (call.attempts, api.told) == (5, [])


@pytest.mark.parametrize("spared", [True, False])
def test_what_may_have_been_executed_is_not_repeated(spared):
    """A call that must not be repeated fails with its first attempt, also where failures are spared."""
    outcome = Attempts().end(call_of(), Retryable("timeout", "no answer", not_repeated="a POST"), None, spared=spared)
    assert isinstance(outcome, WireOutcome)
    assert (outcome.error_code, outcome.error_message, outcome.attempts) == ("timeout", "no answer; a POST", 1)


@pytest.mark.parametrize(
    ("after_s", "kind", "pause_s"),
    [
        (None, ThrottleKind.QUOTA, 3600.0),
        (5.0, ThrottleKind.QUOTA, 5.0),
        (0.0, ThrottleKind.QUOTA, 0.0),
        (None, ThrottleKind.RATE, None),
    ],
)
def test_a_refusal_pauses_as_long_as_the_api_says(after_s, kind, pause_s):
    """The limiter hears how long to pause; of a spent quota without a time that is an hour. No attempt is spent."""
    api, call = Attempts(), call_of()
    ending = api.end(call, Throttled(after_s, "429", kind=kind))
    assert ending == Postponed("http_429", "429", spends_attempt=False, throttled=True)
    assert (api.told, call.attempts, call.throttles) == ([(pause_s, "429", kind.value)], 0, 1)


def test_redirects_are_followed_within_the_api_five_times():
    """A redirect under the base URL costs no attempt and is followed; the sixth of a call fails it."""
    api, call = Attempts(), call_of()
    for hop in range(1, 6):
        ending = api.end(call, Redirected("http_307", "307", f"/v1/hop{hop}"))
        assert ending == Postponed("redirect", f"https://x.test/v1/hop{hop}", spends_attempt=False)
        assert (call.url, call.redirects, call.attempts) == (f"https://x.test/v1/hop{hop}", hop, 0)
    outcome = api.end(call, Redirected("http_307", "307", "/v1/hop6"))
    assert isinstance(outcome, WireOutcome)
    assert outcome.error_message == "more than 5 redirects, the last one to https://x.test/v1/hop6"


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("https://evil.test/v1/a?key=1", "https://evil.test/v1/a?..."),
        ("https://x.test/v2", "https://x.test/v2"),
        ("https://user:word@evil.test/a\x01b", "https://evil.test/a?b"),
        ("mailto:word@evil.test?key=1", "evil.test?..."),
    ],
)
def test_redirects_away_from_the_api_are_not_followed(location, shown):
    """A redirect that leaves the base URL fails the call; the message shows no credential, query or odd character."""
    api, call = Attempts(), call_of()
    outcome = api.end(call, Redirected("http_307", "307", location))
    assert isinstance(outcome, WireOutcome)
    assert outcome.error_code == "redirect"
    assert f"to {shown};" in (outcome.error_message or "")
    assert (call.url, call.redirects) == ("/a", 0)


def test_a_redirect_that_is_not_to_be_followed_says_why():
    """Where following would be another call the job fails with the API's status."""
    outcome = Attempts().end(call_of(), Redirected("http_301", "301 Moved", "/v1/b", not_followed="because"))
    assert isinstance(outcome, WireOutcome)
    assert (outcome.error_code, outcome.error_message) == (
        "http_301",
        "301 Moved to https://x.test/v1/b, not followed: because",
    )


@pytest.mark.parametrize(("allowed", "spent", "follows"), [(1, 1, True), (1, 2, False), (4, 3, True), (4, 4, False)])
def test_attempts_bound_redirects(allowed, spent, follows):
    """A call that has spent all its attempts, two at least, follows no redirect any more."""
    ending = Attempts(retry={"attempts": allowed}).end(call_of(spent), Redirected("http_307", "307", "/v1/b"))
    assert isinstance(ending, Postponed) is follows


def test_a_credential_that_others_do_without_is_set_aside():
    """A refused credential costs no attempt; when another one was taken for its calls three times, it is set aside."""
    api = Attempts()
    for _ in range(3):
        call = call_of()
        again = api.endings.of(
            call, cast("Any", SimpleNamespace(key=1)), KeyRefused(403, "403 Forbidden"), ANSWER, spared=False
        )
        assert again == Postponed("http_403", "403 Forbidden", spends_attempt=False)
        assert not any(what[0] == "aside" for what in api.told)
        assert isinstance(api.end(call, SUCCEEDED), WireOutcome)
    assert api.told == ["accepted"] * 3 + [("aside", 1, 600.0, "403 Forbidden, but not with A")]


def refused_with(api: Attempts, call: Call, key: int) -> WireOutcome | Postponed:
    """End an attempt for which a credential that has worked was not accepted."""
    slot = cast("Any", SimpleNamespace(key=key))
    return api.endings.of(call, slot, KeyRefused(401, "401 Unauthorized"), ANSWER, spared=False)


def test_a_call_that_two_credentials_are_refused_is_at_fault_itself():
    """It is tried with a second credential, fails with its answer, and neither of the two is set aside."""
    api, call = Attempts(), call_of()
    assert refused_with(api, call, 1) == Postponed("http_401", "401 Unauthorized", spends_attempt=False)
    outcome = refused_with(api, call, 0)
    assert isinstance(outcome, WireOutcome)
    assert (outcome.error_code, outcome.attempts) == ("http_401", 1)
    assert api.told == []


def test_a_credential_is_set_aside_when_another_one_makes_its_call():
    """One call that another credential was accepted for shows that the API knows the first one no more."""
    api, call = Attempts(), call_of()
    refused_with(api, call, 1)
    assert isinstance(api.end(call, SUCCEEDED), WireOutcome)
    assert api.told == ["accepted", ("aside", 1, 600.0, "401 Unauthorized")]


def test_credentials_that_are_accepted_for_no_job_are_set_aside():
    """Twenty jobs in a row that no credential was accepted for set the credentials aside; the last job waits."""
    api = Attempts()
    for _ in range(19):
        call = call_of()
        refused_with(api, call, 1)
        assert isinstance(refused_with(api, call, 0), WireOutcome)
    refused_with(api, call := call_of(), 1)
    assert isinstance(refused_with(api, call, 0), Postponed)
    assert [what[:2] for what in api.told] == [("aside", 0), ("aside", 1)]
