"""Feedback from headers: samples of real servers, row by row."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from callmill.config.limit_spec import Unit
from callmill.limits.feedback import Feedback, Observation
from callmill.limits.headers import ABSURD_RETRY_AFTER_S, read_feedback

NOON = "Sat, 01 Jan 2050 12:00:00 GMT"
NOON_S = 2_524_651_200


def observed(headers, date=NOON):
    """Return the observations in the headers of an answer given at noon."""
    feedback = read_feedback({"date": date, "content-type": "application/json", **headers})
    return [] if feedback is None else list(feedback.observations)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "120"}, 120.0),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after": "64.57"}, 64.57),
        ({"retry-after": "172800"}, 172_800.0),
        ({"retry-after": "604800"}, 604_800.0),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "1e9"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "٣"}, None),
        ({"retry-after": "9" * 1025}, None),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "-1", "retry-after": "9"}, 9.0),
        ({"retry-after": "Sat, 01 Jan 2050 12:00:30 GMT"}, 30.0),
        ({"retry-after": "Saturday, 01-Jan-50 12:00:30 GMT"}, 30.0),
        ({"retry-after": "Sat Jan  1 12:00:30 2050"}, 30.0),
        ({"retry-after": "Sat, 01 Jan 2050 12:00:30 -0000"}, 30.0),
        ({"retry-after": "2050-01-01T12:00:30Z"}, 30.0),
        ({"retry-after": "Sat, 01 Jan 2050 11:00:00 GMT"}, 0.0),
        ({"retry-after": "Mon, 03 Jan 2050 12:00:00 GMT"}, 172_800.0),
        ({"retry-after": "Sat, 99 Jan 2050 12:00:30 GMT"}, None),
        ({"retry-after": "Sat, 01 Jan 99999999999 12:00:30 GMT"}, None),
    ],
)
def test_forms_of_retry_after(headers, seconds):
    """Seconds, fractions, milliseconds and dates are understood, up to a week; anything else is no wish."""
    feedback = read_feedback({"date": NOON, **headers})
    assert feedback == (None if seconds is None else Feedback(seconds))


@pytest.mark.parametrize("wish", ["604801", "9" * 400, "Sun, 01 Jan 2051 12:00:00 GMT", "99999999.5"])
def test_absurd_retry_after_is_an_hour(wish):
    """Who asks for more than a week is asked again after an hour, and it shows."""
    assert read_feedback({"date": NOON, "retry-after": wish}) == Feedback(ABSURD_RETRY_AFTER_S, absurd=True)


def test_date_without_date_header_counts_from_now():
    """A date in an answer that does not say when it was given counts from our own clock."""
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    feedback = read_feedback({"retry-after": later, "date": "yesterday"})
    assert feedback is not None
    assert 55 < (feedback.retry_after_s or 0) <= 60


@pytest.mark.parametrize(
    ("text", "reset_s", "step_s"),
    [
        ("1s", 1.0, 1.0),
        ("6m0s", 360.0, 1.0),
        ("1m30.951s", 90.951, 0.001),
        ("6ms", 0.006, 0.001),
        ("7.66s", 7.66, 0.01),
        ("2m59.56s", 179.56, 0.01),
        ("1h2m3s", 3723.0, 1.0),
        ("24h", 86_400.0, 3600.0),
        ("1d2h", 93_600.0, 3600.0),
        ("150µs", 150e-6, 1e-6),
        ("0s", 0.0, 1.0),
        ("59", 59.0, 1.0),
        ("1.25", 1.25, 0.01),
        (f"{NOON_S + 60}", 60.0, 1.0),
        (f"{NOON_S + 60}.250", 60.25, 1.0),
        (f"{NOON_S + 60}000", 60.0, 1.0),
        (f"{NOON_S - 60}", 0.0, 1.0),
        ("2050-01-01T12:01:00Z", 60.0, 1.0),
        ("2050-01-01t13:01:00.5+01:00", 60.5, 1.0),
        ("2050-01-01 12:01:00", 60.0, 1.0),
    ],
)
def test_forms_of_resets(text, reset_s, step_s):
    """Go durations, seconds, Unix times in s and ms and ISO times tell the same time, and how coarsely."""
    (seen,) = observed({"x-ratelimit-remaining": "1", "x-ratelimit-reset": text})
    assert seen.reset_s == pytest.approx(reset_s, abs=1e-5)
    assert seen.reset_step_s == pytest.approx(step_s)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "m",
        "1m1h",
        "-1s",
        "1s2",
        "1e400",
        "inf",
        "nan",
        "soon",
        "\u0661s",
        "9" * 25,
        "2050-13-01T00:00:00Z",
        "2049",
        f"{NOON_S + 500 * 86_400}",
        "99999h",
        "0001-01-01T00:00:00+14:00x",
        "2050-W01-1",
        "1s" * 40,
    ],
)
def test_resets_that_are_none(text):
    """A reset that is not understood, or more than a year away, is not known; the rest of the limit is."""
    (seen,) = observed({"x-ratelimit-limit": "5", "x-ratelimit-remaining": "4", "x-ratelimit-reset": text})
    expected = 2049.0 if text == "2049" else None
    assert (seen.limit, seen.remaining, seen.reset_s) == (5, 4, expected)


def test_moment_without_date_is_not_known():
    """A Unix time in an answer without ``Date`` says nothing: our clock is not the server's."""
    (seen,) = observed({"x-ratelimit-remaining": "1", "x-ratelimit-reset": f"{NOON_S}"}, date="")
    assert (seen.remaining, seen.reset_s, seen.reset_step_s) == (1, None, 0.0)


def see(name, unit=Unit.REQUESTS, limit=None, remaining=None, *, reset=None, window=None):
    """Build an observation; ``reset`` is the time and its step."""
    reset_s, step_s = reset or (None, 0.0)
    return Observation(name, unit, limit, remaining, reset_s, step_s, window)


TOKENS, INPUT, OUTPUT = Unit.TOKENS, Unit.INPUT_TOKENS, Unit.OUTPUT_TOKENS
SAMPLES = {
    "OpenAI": (
        {
            "x-ratelimit-limit-requests": "60",
            "x-ratelimit-remaining-requests": "59",
            "x-ratelimit-reset-requests": "1s",
            "x-ratelimit-limit-tokens": "150000",
            "x-ratelimit-remaining-tokens": "149984",
            "x-ratelimit-reset-tokens": "6m0s",
        },
        [
            see("requests", limit=60, remaining=59, reset=(1, 1)),
            see("tokens", TOKENS, 150_000, 149_984, reset=(360, 1)),
        ],
    ),
    "OpenAI, a project's own limit": (
        {"x-ratelimit-limit-project-tokens": "9000", "x-ratelimit-remaining-project-tokens": "0"},
        [see("project tokens", TOKENS, 9000, 0)],
    ),
    "Azure OpenAI": (
        {"x-ratelimit-remaining-requests": "9", "x-ratelimit-remaining-tokens": "9984"},
        [see("requests", remaining=9), see("tokens", TOKENS, remaining=9984)],
    ),
    "Groq": (
        {
            "x-ratelimit-limit-requests": "14400",
            "x-ratelimit-limit-tokens": "18000",
            "x-ratelimit-remaining-requests": "14370",
            "x-ratelimit-remaining-tokens": "17997",
            "x-ratelimit-reset-requests": "2m59.56s",
            "x-ratelimit-reset-tokens": "7.66s",
        },
        [
            see("requests", limit=14_400, remaining=14_370, reset=(179.56, 0.01)),
            see("tokens", TOKENS, 18_000, 17_997, reset=(7.66, 0.01)),
        ],
    ),
    "Cerebras": (
        {
            "x-ratelimit-limit-requests-day": "14400",
            "x-ratelimit-remaining-requests-day": "14399",
            "x-ratelimit-reset-requests-day": "33011.382867",
            "x-ratelimit-limit-tokens-minute": "60000",
            "x-ratelimit-remaining-tokens-minute": "0",
            "x-ratelimit-reset-tokens-minute": "11.38",
        },
        [
            see("requests/day", limit=14_400, remaining=14_399, reset=(33_011.382867, 1e-6), window=86_400.0),
            see("tokens/minute", TOKENS, 60_000, 0, reset=(11.38, 0.01), window=60.0),
        ],
    ),
    "Anthropic": (
        {
            "anthropic-ratelimit-requests-limit": "50",
            "anthropic-ratelimit-requests-remaining": "49",
            "anthropic-ratelimit-requests-reset": "2050-01-01T12:00:01Z",
            "anthropic-ratelimit-tokens-limit": "48000",
            "anthropic-ratelimit-tokens-remaining": "47000",
            "anthropic-ratelimit-tokens-reset": "2050-01-01T12:00:02Z",
            "anthropic-ratelimit-input-tokens-limit": "40000",
            "anthropic-ratelimit-input-tokens-remaining": "39000",
            "anthropic-ratelimit-input-tokens-reset": "2050-01-01T12:00:03Z",
            "anthropic-ratelimit-output-tokens-limit": "8000",
            "anthropic-ratelimit-output-tokens-remaining": "8000",
            "anthropic-ratelimit-output-tokens-reset": "2050-01-01T12:00:00Z",
        },
        [
            see("requests", limit=50, remaining=49, reset=(1, 1)),
            see("tokens", TOKENS, 48_000, 47_000, reset=(2, 1)),
            see("input tokens", INPUT, 40_000, 39_000, reset=(3, 1)),
            see("output tokens", OUTPUT, 8000, 8000, reset=(0, 1)),
        ],
    ),
    "GitHub": (
        {
            "x-ratelimit-limit": "5000",
            "x-ratelimit-remaining": "0",
            "x-ratelimit-used": "5000",
            "x-ratelimit-reset": f"{NOON_S + 2100}",
            "x-ratelimit-resource": "core",
        },
        [see("core", limit=5000, remaining=0, reset=(2100, 1))],
    ),
    "what is used instead of what remains": (
        {"x-ratelimit-limit": "10", "x-ratelimit-used": "12"},
        [see("requests", limit=10, remaining=0)],
    ),
    "Discord": (
        {
            "x-ratelimit-limit": "5",
            "x-ratelimit-remaining": "0",
            "x-ratelimit-reset": f"{NOON_S + 2}.500",
            "x-ratelimit-reset-after": "1.470",
            "x-ratelimit-bucket": "abcd1234",
            "x-ratelimit-scope": "user",
        },
        [see("abcd1234", limit=5, remaining=0, reset=(1.47, 0.001))],
    ),
    "Discord, all routes at once": (
        {"x-ratelimit-limit": "50", "x-ratelimit-remaining": "0", "x-ratelimit-global": "true"}
        | {"x-ratelimit-bucket": "abcd1234"},
        [see("global", limit=50, remaining=0)],
    ),
    "Shopify": ({"x-shopify-shop-api-call-limit": "32/40"}, [see("requests", limit=40, remaining=8)]),
    "Okta": (
        {"x-rate-limit-limit": "600", "x-rate-limit-remaining": "599", "x-rate-limit-reset": f"{NOON_S + 37}"},
        [see("requests", limit=600, remaining=599, reset=(37, 1))],
    ),
    "Kong": (
        {
            "x-ratelimit-limit-minute": "10",
            "x-ratelimit-remaining-minute": "9",
            "ratelimit-limit": "10",
            "ratelimit-remaining": "9",
            "ratelimit-reset": "51",
        },
        [
            see("requests", limit=10, remaining=9, reset=(51, 1)),
            see("requests/minute", limit=10, remaining=9, window=60.0),
        ],
    ),
    "GitLab": (
        {
            "ratelimit-limit": "60",
            "ratelimit-name": "throttle_authenticated_web",
            "ratelimit-observed": "67",
            "ratelimit-remaining": "0",
            "ratelimit-reset": f"{NOON_S + 6}",
        },
        [see("throttle_authenticated_web", limit=60, remaining=0, reset=(6, 1))],
    ),
    "Docker Hub": (
        {"ratelimit-limit": "100;w=21600", "ratelimit-remaining": "76;w=21600"},
        [see("requests", limit=100, remaining=76, window=21_600.0)],
    ),
    "Envoy": (
        {
            "x-ratelimit-limit": '10, 10;w=1;name="default", 500;w=60',
            "x-ratelimit-remaining": "9",
            "x-ratelimit-reset": "1",
        },
        [see("requests", limit=10, remaining=9, reset=(1, 1), window=1.0), see("requests/60s", limit=500, window=60.0)],
    ),
    "draft 06": (
        {
            "ratelimit-limit": "100",
            "ratelimit-remaining": "50",
            "ratelimit-reset": "50",
            "ratelimit-policy": "100;w=60",
        },
        [see("requests", limit=100, remaining=50, reset=(50, 1), window=60.0)],
    ),
    "draft 07": (
        {"ratelimit": "limit=100, remaining=50, reset=5", "ratelimit-policy": "100;w=10, 1000;w=3600"},
        [
            see("requests", limit=100, remaining=50, reset=(5, 1), window=10.0),
            see("requests/3600s", limit=1000, window=3600.0),
        ],
    ),
    "draft 10": (
        {
            "ratelimit-policy": '"burst";q=100;w=60,"daily";q=1000;w=86400, "inflight";q=8;qu="concurrent-requests", '
            '"bytes";q=9;qu="content-bytes"',
            "ratelimit": '"burst";r=50;t=30;pk=:QUJD:, "inflight";r=3, "bytes";r=0',
        },
        [
            see("burst", limit=100, remaining=50, reset=(30, 1), window=60.0),
            see("inflight", Unit.CONCURRENT, 8, 3),
            see("daily", limit=1000, window=86_400.0),
        ],
    ),
    "draft 10, state alone": ({"ratelimit": '"default";r=50;t=30'}, [see("default", remaining=50, reset=(30, 1))]),
    "express-rate-limit, both generations": (
        {
            "ratelimit-policy": '"100-in-15min"; q=100; w=900; pk=:NmU5ZDM0YTQ4MjFh:',
            "ratelimit": '"100-in-15min"; r=99; t=900',
            "x-ratelimit-limit": "100",
            "x-ratelimit-remaining": "99",
        },
        [see("100-in-15min", limit=100, remaining=99, reset=(900, 1), window=900.0)],
    ),
}


@pytest.mark.parametrize("server", SAMPLES)
def test_samples_of_servers(server):
    """What well-known servers write is read as what they mean."""
    headers, expected = SAMPLES[server]
    assert observed(headers) == expected


@pytest.mark.parametrize(
    "headers",
    [
        {"x-ratelimit-limit": "lots", "x-ratelimit-remaining": "some"},
        {"x-ratelimit-limit": "-1"},
        {"x-ratelimit-limit": "0"},
        {"x-ratelimit-limit": "1e5"},
        {"x-ratelimit-remaining": "-1"},
        {"x-ratelimit-remaining": "٣"},
        {"x-ratelimit-remaining": "9" * 16},
        {"x-ratelimit-reset": "5"},
        {"x-ratelimit-remaining-requests": "NaN"},
        {"x-shopify-shop-api-call-limit": "32"},
        {"x-shopify-shop-api-call-limit": "32/0"},
        {"x-shopify-shop-api-call-limit": "/40"},
        {"ratelimit": '"a";r=50;t=30, "b";t=3'},
        {"ratelimit": '"a";r=-1'},
        {"ratelimit": '"a";r=1;t=3,'},
        {"ratelimit": '("a" "b");r=1'},
        {"ratelimit": '"unclosed;r=1'},
        {"ratelimit": "limit=(1 2)"},
        {"ratelimit-policy": '"a";q=1, "b"'},
        {"age": "30", "x-ratelimit-limit": "5", "x-ratelimit-remaining": "1"},
    ],
)
def test_what_is_malformed_says_nothing(headers):
    """A value that is none, a field with one bad member and an answer from a cache tell of no limit."""
    assert observed(headers) == []


def test_retry_after_of_a_cached_answer_holds():
    """An answer from a cache tells of no limit, but may still ask to wait; one that was just made tells both."""
    headers = {"retry-after": "3", "x-ratelimit-remaining": "1"}
    assert read_feedback({"age": "1", **headers}) == Feedback(3.0)
    assert read_feedback({"age": "0", **headers}) == Feedback(3.0, (see("requests", remaining=1),))


def test_unprintable_names_are_not_shown():
    """A name that is too long, or could play with a terminal, is replaced by what the limit counts."""
    for name in ("\x1b[2J", "x" * 65, "bücket"):
        (seen,) = observed({"x-ratelimit-remaining": "1", "x-ratelimit-resource": name})
        assert seen.name == "requests"
