"""Throttling: which answers want fewer calls, of which kind, and what people are told."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from verdict_kit import judge, rules

from callmill.workers.throttling import Throttled, ThrottleKind
from callmill.workers.verdict import SUCCEEDED, Failed, KeyRefused, Retryable

NOON = "Sat, 01 Jan 2050 12:00:00 GMT"
GITHUB = rules(throttle={"statuses": [403], "rate": {"/message": ["secondary rate limit"]}})
SPENT = {"date": NOON, "x-ratelimit-limit": "5000", "x-ratelimit-remaining": "0", "x-ratelimit-resource": "core"}
UNKNOWN, RATE, QUOTA, CONCURRENCY = ThrottleKind


def body_of(**values):
    """Write a body."""
    return json.dumps(values).encode()


def test_403_of_a_spent_limit_throttles():
    """Where the profile lists 403, one with nothing remaining waits for the reset and says so; it is no failure."""
    assert judge(403, SPENT | {"x-ratelimit-reset": "2524653300"}, by=GITHUB) == Throttled(
        2100.0, "403 Forbidden: remaining 0 of core, resets in 35 min", QUOTA, "http_403"
    )


def test_403_that_asks_to_wait_throttles():
    """Where the profile lists 403, one with Retry-After, or with the text listed, is a matter of limits."""
    assert judge(403, {"retry-after": "60"}, by=GITHUB) == Throttled(60.0, "403 Forbidden", UNKNOWN, "http_403")
    text = body_of(message="You have exceeded a Secondary Rate Limit.")
    assert judge(403, body=text, by=GITHUB) == Throttled(None, "403 Forbidden: secondary rate limit", RATE, "http_403")


@pytest.mark.parametrize("headers", [{}, {"x-ratelimit-remaining": "17"}])
def test_ordinary_403_fails(headers):
    """A 403 that says nothing of limits fails, whether the profile lists 403 or not."""
    for by in (GITHUB, rules()):
        assert judge(403, headers, body=body_of(message="Must have admin rights"), by=by) == Failed(
            "http_403", "403 Forbidden"
        )
    assert judge(403, SPENT | {"retry-after": "60"}) == Failed("http_403", "403 Forbidden")


@pytest.mark.parametrize("status", [503, 529])
def test_overload_throttles_where_listed(status):
    """503 and 529 that ask to wait pause the lane where listed; in all other cases the call alone is repeated."""
    listed = rules(throttle={"statuses": [503, 529]})
    verdict = judge(status, {"retry-after": "7"}, by=listed)
    assert isinstance(verdict, Throttled)
    assert (verdict.after_s, verdict.kind, verdict.code) == (7.0, UNKNOWN, f"http_{status}")
    assert isinstance(judge(status, {"retry-after": "7"}), Retryable)
    assert isinstance(judge(status, by=listed), Retryable)


def test_success_that_is_a_refusal():
    """A 200 with the listed text in its body throttles; other 200s succeed, whatever their headers say."""
    shop = rules(throttle={"statuses": [200], "rate": {"/errors/0/extensions/code": ["THROTTLED"]}})
    refusal = body_of(errors=[{"extensions": {"code": "THROTTLED"}}])
    assert judge(200, body=refusal, by=shop) == Throttled(None, "200 OK: THROTTLED", RATE, "http_200")
    assert judge(200, SPENT | {"retry-after": "9"}, body=body_of(data={}), by=shop) == SUCCEEDED
    assert judge(201, body=refusal, by=shop) == SUCCEEDED
    assert judge(200, body=refusal) == SUCCEEDED
    assert judge(200, body=body_of(type="#quota-exceeded"), by=shop) == SUCCEEDED
    assert judge(200, body=refusal[:-1] + b" " * 70_000 + b"}", by=shop) == SUCCEEDED


@pytest.mark.parametrize(
    ("body", "kind", "told"),
    [
        (body_of(error={"code": "insufficient_quota"}), QUOTA, "insufficient_quota"),
        (body_of(error={"type": "insufficient_quota", "code": None}), QUOTA, "insufficient_quota"),
        (body_of(error={"message": "Too many concurrent requests"}), CONCURRENCY, "concurren"),
        (body_of(type="https://iana.org/assignments/http-problem-types#quota-exceeded"), RATE, "#quota-exceeded"),
        (body_of(error={"code": "slow_down"}), UNKNOWN, ""),
        (b"slow down", UNKNOWN, ""),
        (b"", UNKNOWN, ""),
        (b"[" * 60_000, UNKNOWN, ""),
        (b'{"error": ' * 6_000, UNKNOWN, ""),
        (b"\xff", UNKNOWN, ""),
    ],
)
def test_kinds_of_429(body, kind, told):
    """Well-known bodies of a 429 tell its kind; without one, and for any broken body, it is the rate."""
    reason = f"429 Too Many Requests: {told}" if told else "429 Too Many Requests"
    assert judge(429, body=body) == Throttled(None, reason, kind)


def test_own_texts_go_first():
    """A profile's texts decide the kind before those that are known anyway; numbers must be equal, texts occur."""
    own = rules(
        throttle={
            "statuses": [400],
            "concurrency": {"/error/code": ["insufficient_quota"]},
            "quota": {"/errors/code": ["4"]},
            "rate": {"/__type": ["throttlingexception"]},
        }
    )
    assert judge(429, body=body_of(error={"code": "insufficient_quota"}), by=own).kind is CONCURRENCY
    assert judge(400, body=body_of(errors={"code": 4}), by=own).kind is QUOTA
    assert judge(400, body=body_of(__type="com.aws#ThrottlingException"), by=own).kind is RATE
    for body in (body_of(errors={"code": 14}), body_of(errors={"code": 4.5}), body_of(errors={"code": True}), b"{}"):
        assert judge(400, body=body, by=own) == Failed("http_400", "400 Bad Request")


@pytest.mark.parametrize("name", ["quota-exceeded", "temporary-reduced-capacity", "abnormal-usage-detected"])
def test_problem_types_need_no_profile(name):
    """A problem of one of the three registered types is a matter of limits, with any status of an error."""
    body = body_of(type=f"https://iana.org/assignments/http-problem-types#{name}", title="x")
    verdict = judge(503, {"content-type": "application/problem+json; charset=utf-8"}, body=body)
    assert isinstance(verdict, Throttled)
    assert verdict.reason == f"503 Service Unavailable: #{name}"
    assert isinstance(judge(503, {"content-type": "application/json"}, body=body), Retryable)
    assert isinstance(judge(503, {"content-type": "application/problem+json"}, body=body_of(type="#else")), Retryable)


@pytest.mark.parametrize(
    ("headers", "after_s", "kind", "told"),
    [
        ({"retry-after": "172800"}, 172_800.0, QUOTA, ": asked to wait 2 d"),
        ({"retry-after": "599"}, 599.0, UNKNOWN, ""),
        ({"retry-after": "9" * 30}, 3600.0, QUOTA, ": asked for more than 7 d, tried again in 60 min"),
        ({"retry-after": "5", **SPENT}, 5.0, RATE, ": remaining 0 of core"),
        ({**SPENT, "x-ratelimit-reset": "90"}, 90.0, RATE, ": remaining 0 of core, resets in 90 s"),
        ({**SPENT, "x-ratelimit-reset": "48h"}, 172_800.0, QUOTA, ": remaining 0 of core, resets in 2 d"),
        ({**SPENT, "x-ratelimit-reset": "720h"}, 3600.0, QUOTA, ": remaining 0 of core, resets in 30 d"),
        (SPENT, None, RATE, ": remaining 0 of core"),
        ({"ratelimit": '"a";r=0;t=5, "b";r=0;t=9, "c";r=1;t=99'}, 9.0, RATE, ": remaining 0 of b, resets in 9 s"),
        (
            {"ratelimit": '"c";r=0', "ratelimit-policy": '"c";q=8;qu="concurrent-requests"'},
            None,
            CONCURRENCY,
            ": remaining 0 of c",
        ),
    ],
)
def test_headers_of_429(headers, after_s, kind, told):
    """Retry-After goes before resets; of spent limits the last to come back counts; what takes long is a quota."""
    assert judge(429, headers) == Throttled(after_s, f"429 Too Many Requests{told}", kind)


@pytest.mark.parametrize("status", [401, 403])
def test_refused_key_of_a_pool(status):
    """401 and 403 refuse the credential where there are several; where there is one, the call fails."""
    pool = rules(auth=[{"bearer": "env:A"}, {"bearer": "env:B"}], throttle={"statuses": [403]})
    verdict = judge(status, by=pool)
    assert isinstance(verdict, KeyRefused)
    assert verdict.status == status
    assert verdict.message.startswith(f"{status} ")
    assert isinstance(judge(status, by=rules(auth=[{"bearer": "env:A"}])), Failed)
    assert isinstance(judge(403, SPENT, by=pool), Throttled)
    assert judge(404, by=pool) == Failed("http_404", "404 Not Found")


def test_wish_of_a_failed_call_is_bounded():
    """A call that is repeated by itself waits an hour at most, so that its batch does not wait for days."""
    assert judge(503, {"retry-after": "172800"}).after_s == 3600.0


@given(
    status=st.integers(200, 599),
    body=st.binary(max_size=40)
    | st.recursive(
        st.text() | st.integers(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["error", "code", "type", "message", "errors", "0"]), inner)
        ),
    ).map(lambda value: json.dumps(value).encode()),
)
def test_any_body_is_harmless(status, body):
    """Whatever a body holds, the answer is classified."""
    by = rules(throttle={"statuses": list(range(200, 600)), "rate": {"/error/code": ["1"], "/errors/0": ["a"]}})
    assert judge(status, {"content-type": "application/problem+json"}, body=body, by=by) is not None
