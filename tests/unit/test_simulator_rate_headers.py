"""Rate limit headers, style by style."""

from __future__ import annotations

import pytest

from callmill.config.limit_spec import parse_limit
from callmill.simulator.gate import Standing
from callmill.simulator.options import HeaderStyle
from callmill.simulator.rate_headers import go_duration, rate_headers

MS = 1_000_000
SECOND = 1000 * MS
NOW = 1_700_000_000 * SECOND + 250 * MS
STANDINGS = [
    Standing(parse_limit("500/minute"), 499, 120 * MS),
    Standing(parse_limit("10000/day"), 100, 80_000 * SECOND),
    Standing(parse_limit("200000 tokens/minute"), 150_000, 15_500 * MS),
    Standing(parse_limit("64 concurrent"), 60, 0),
]


def headers(style: HeaderStyle, retry_after_ns: int | None = None) -> dict[str, str]:
    """Return the headers of STANDINGS in one style."""
    return dict(rate_headers(style, STANDINGS, now_ns=NOW, retry_after_ns=retry_after_ns))


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0s"),
        (1, "1ms"),
        (20 * MS, "20ms"),
        (1000 * MS, "1s"),
        (8640 * MS, "8.64s"),
        (179_560 * MS, "2m59.56s"),
        (360 * SECOND, "6m0s"),
        (3600 * SECOND, "1h0m0s"),
        (90_061_001 * MS, "25h1m1.001s"),
    ],
)
def test_durations_are_written_as_go_writes_them(ns, text):
    """A duration has the form that Go's time.Duration prints."""
    assert go_duration(ns) == text


def test_openai_headers_tell_the_tightest_limit_of_each_unit():
    """openai: limit, remaining and reset for requests and for tokens, of the limit that has the least share left."""
    assert headers(HeaderStyle.OPENAI) == {
        "x-ratelimit-limit-requests": "10000",
        "x-ratelimit-remaining-requests": "100",
        "x-ratelimit-reset-requests": "22h13m20s",
        "x-ratelimit-limit-tokens": "200000",
        "x-ratelimit-remaining-tokens": "150000",
        "x-ratelimit-reset-tokens": "15.5s",
    }


def test_github_headers_tell_one_limit_with_its_reset_as_a_time():
    """github: the tightest limit, with the Unix second of its reset, rounded up."""
    assert headers(HeaderStyle.GITHUB) == {
        "x-ratelimit-limit": "10000",
        "x-ratelimit-remaining": "100",
        "x-ratelimit-used": "9900",
        "x-ratelimit-reset": str(1_700_000_000 + 80_001),
        "x-ratelimit-resource": "core",
    }


def test_ietf_headers_list_every_limit_as_structured_fields():
    """ietf: a policy and a state per limit, joined by the policy's name."""
    assert headers(HeaderStyle.IETF) == {
        "ratelimit-policy": '"requests-60s";q=500;w=60, "requests-86400s";q=10000;w=86400, '
        '"tokens-60s";q=200000;qu="tokens";w=60, "concurrent";q=64;qu="concurrent-requests"',
        "ratelimit": '"requests-60s";r=499;t=1, "requests-86400s";r=100;t=80000, '
        '"tokens-60s";r=150000;t=16, "concurrent";r=60',
    }


@pytest.mark.parametrize("style", [HeaderStyle.OPENAI, HeaderStyle.GITHUB, HeaderStyle.IETF])
@pytest.mark.parametrize(("wait_ns", "seconds"), [(1, "1"), (SECOND, "1"), (SECOND + 1, "2")])
def test_retry_after_is_never_too_short(style, wait_ns, seconds):
    """A 429 carries Retry-After in whole seconds, rounded up."""
    assert headers(style, wait_ns)["retry-after"] == seconds


def test_none_tells_nothing():
    """none: a bare 429, without even Retry-After."""
    assert headers(HeaderStyle.NONE, SECOND) == {}


@pytest.mark.parametrize("style", list(HeaderStyle))
def test_no_limit_means_no_headers(style):
    """A simulator without limits sends no rate limit headers."""
    assert rate_headers(style, [], now_ns=NOW, retry_after_ns=None) == []
