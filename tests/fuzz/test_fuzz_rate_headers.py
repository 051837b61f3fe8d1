"""Rate headers: whatever a server sends is read as something bounded, or as nothing."""

from __future__ import annotations

import json
from typing import Any

from fuzzing import fuzz
from hypothesis import strategies as st

from callmill.config.limit_spec import Enforcer, parse_limit
from callmill.config.throttle_policy import ThrottlePolicy
from callmill.jobs.traffic import NORMAL
from callmill.limits import LimitRules, headers, quota_headers
from callmill.limits.drift import facts
from callmill.limits.header_values import LONGEST_RESET_S
from callmill.limits.keys import Keys
from callmill.limits.layout import layout
from callmill.workers.throttling import Throttled, ThrottleRules
from callmill.workers.transports.port import Response

_NAMES = sorted(
    {
        *headers._TELLING,
        *(name for quota in (*quota_headers.PLAIN, *quota_headers.DETAILED) for name in (*quota.resets, *quota.called)),
        *(name for quota in quota_headers.PLAIN for name, _ in quota.everywhere),
        *("ratelimit-policy", "date", "age"),
    }
)
_LAYOUT = layout(
    LimitRules(tuple(map(parse_limit, ("100/second", "10000/day", "200000 tokens/minute")))), Keys("fuzz"), "", NORMAL
)
_THROTTLE = ThrottleRules(ThrottlePolicy(statuses=(200, 403, 503), rate={"/error/code": ["x"]}))
_LONGEST_REASON = 2000

_PIECES = st.sampled_from(
    (
        *(
            "0",
            "1",
            "-1",
            "1e9",
            "60",
            "604800",
            "1700000000",
            "1700000000000",
            "99999999999999999999",
            "0.5",
            "inf",
            "nan",
        ),
        *("1s", "6m0s", "1m30.951s", "6ms", "1h", "2d", "10, 10;w=1, 50;w=60", "limit=100, remaining=50, reset=5"),
        *(
            '"default";r=50;t=30',
            '"burst";q=100;w=60,"daily";q=1000;w=86400;qu="requests"',
            ":YWJj:",
            "?1",
            "(1 2)",
            "@7",
        ),
        *(
            "Sat, 01 Jan 2050 12:00:00 GMT",
            "Saturday, 01-Jan-50 12:00:00 GMT",
            "Sat Jan  1 12:00:00 2050",
            "2050-01-01",
        ),
        *(
            "2050-01-01T12:00:00Z",
            "2050-01-01T12:00:00.123+02:00",
            "32/40",
            "true",
            "global",
            ";",
            ",",
            "=",
            '"',
            "\\",
            " ",
        ),
        *("\u0660\u0661", "\u00b5s", "\x00", "\ud800"),
    )
)
_VALUES = st.one_of(
    _PIECES,
    st.lists(st.one_of(_PIECES, st.text(max_size=8)), max_size=8).map("".join),
    st.tuples(_PIECES, st.integers(1, 2000)).map(lambda pair: pair[0] * pair[1]),
    st.integers().map(str),
    st.floats().map(str),
    st.datetimes().map(lambda moment: moment.isoformat()),
    st.text(max_size=200),
)
_HEADERS = st.dictionaries(st.sampled_from(_NAMES), _VALUES, max_size=12)

_LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=20), _PIECES)
_KEYS = st.one_of(
    st.sampled_from(("error", "details", "retryDelay", "@type", "code", "message", "type")), st.text(max_size=5)
)
_DETAIL = st.fixed_dictionaries(
    {"@type": st.just("type.googleapis.com/google.rpc.RetryInfo"), "retryDelay": st.one_of(_PIECES, _LEAVES)}
)
_JSON = st.recursive(
    st.one_of(_LEAVES, _DETAIL), lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=4)
)
_BODIES = st.one_of(
    st.binary(max_size=200),
    _JSON.map(lambda value: json.dumps(value).encode()),
    st.lists(_DETAIL | _JSON, max_size=4).map(lambda all_: json.dumps({"error": {"details": all_}}).encode()),
    st.tuples(_JSON, st.integers(0, 300), st.binary(max_size=3)).map(lambda of: _broken(*of)),
    st.tuples(st.sampled_from((b"[", b'{"error":', b'{"error":{"details":[')), st.integers(1, 9000)).map(
        lambda of: of[0] * of[1] + b"google.rpc.RetryInfo"
    ),
)


def _broken(value: Any, at: int, instead: bytes) -> bytes:
    whole = json.dumps({"error": {"details": [value]}, "x": "google.rpc.RetryInfo"}).encode()
    return whole[:at] + instead + whole[at + len(instead) :]


@fuzz(_HEADERS)
def test_headers_are_read_as_something_bounded(received: dict[str, str]) -> None:
    """Reading headers never raises; waits, resets and amounts are bounded, and what they teach is finite."""
    feedback = headers.read_feedback(received)
    if feedback is None:
        return
    assert feedback.retry_after_s is None or 0 <= feedback.retry_after_s <= headers.LONGEST_RETRY_AFTER_S
    assert len(feedback.observations) <= headers._MOST_OBSERVATIONS
    for seen in feedback.observations:
        assert seen.reset_s is None or 0 <= seen.reset_s <= LONGEST_RESET_S
        assert seen.limit is None or 0 < seen.limit <= 10**15
        assert seen.remaining is None or 0 <= seen.remaining <= 10**15
    for fact in facts(_LAYOUT, 1, feedback.observations, enforcer=Enforcer.FIXED, took_s=0.1, in_flight=3):
        assert -(10**17) < fact.first < 10**17
        assert -(10**17) < fact.second < 10**17


@fuzz(st.sampled_from((200, 403, 429, 503, 529)), _HEADERS, _BODIES)
def test_answers_ask_for_bounded_waits(status: int, received: dict[str, str], body: bytes) -> None:
    """Whatever headers and body say, an answer is a refusal with a bounded wait and a bounded reason, or none."""
    answer = Response(status, {"content-type": "application/problem+json", **received}, body)
    verdict = _THROTTLE.throttling(answer, headers.read_feedback(received))
    if status == 429:
        assert isinstance(verdict, Throttled)
    if verdict is not None:
        assert verdict.after_s is None or 0 <= verdict.after_s <= headers.LONGEST_RETRY_AFTER_S
        assert len(verdict.reason) <= _LONGEST_REASON
