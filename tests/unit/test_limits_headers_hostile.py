"""Feedback from headers of servers that mean harm, or nothing."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callmill.limits.header_values import LONGEST_RESET_S, read_amount, read_delay, read_http_date, read_iso_time
from callmill.limits.headers import LONGEST_RETRY_AFTER_S, read_feedback
from callmill.limits.quota_headers import DETAILED, PLAIN
from callmill.limits.structured_fields import read_dictionary, read_list
from callmill.simulator.rate_headers import go_duration

NAMES = sorted(
    {name for quota in (*PLAIN, *DETAILED[:8]) for name in (*quota.telling, *quota.resets, *quota.called)}
    | {"ratelimit", "ratelimit-policy", "x-shopify-shop-api-call-limit", "retry-after", "retry-after-ms", "date", "age"}
)
BITS = st.sampled_from(
    [
        '"a"',
        ";",
        "r=",
        "q=",
        "w=",
        "t=",
        "=",
        ",",
        " ",
        "1",
        "0",
        "9" * 15,
        "-",
        ".",
        "s",
        "m",
        "h",
        ":",
        "/",
        "limit",
        "Sat, 01 Jan 2050 12:00:00 GMT",
        "2050-01-01T12:00:00Z",
        "2524651200",
        "2524651200000",
        "µs",
        "٣",
        "\x00",
        "1e400",
    ]
)
TEXTS = st.one_of(st.text(max_size=40), st.lists(BITS, max_size=12).map("".join))


@given(st.dictionaries(st.sampled_from(NAMES), TEXTS, max_size=12))
def test_any_text_is_harmless(headers):
    """Whatever an API writes there, nothing is raised and every number is finite and within bounds."""
    feedback = read_feedback(headers)
    if feedback is None:
        return
    assert feedback.retry_after_s is None or 0 <= feedback.retry_after_s <= LONGEST_RETRY_AFTER_S
    assert feedback.retry_after_s is not None or feedback.observations
    for seen in feedback.observations:
        assert seen.limit is None or 0 < seen.limit < 10**15
        assert seen.remaining is None or 0 <= seen.remaining < 10**15
        assert seen.reset_s is None or (math.isfinite(seen.reset_s) and 0 <= seen.reset_s <= LONGEST_RESET_S)
        assert seen.window_s is None or seen.window_s > 0
        assert seen.name
        assert seen.name.isprintable()


@given(TEXTS, TEXTS)
def test_values_are_total(text, date):
    """Every reader of a value gives a value or None, for any text."""
    for read in (read_amount, read_http_date, read_iso_time, read_list, read_dictionary):
        read(text)
    read_delay(text, date)


@given(st.integers(0, 300 * 86_400 * 1000))
def test_go_durations_come_back(ms):
    """A time written as Go writes it is read as the same time."""
    delay = read_delay(go_duration(ms * 1_000_000), None)
    assert delay is not None
    assert delay.seconds == pytest.approx(ms / 1000, abs=1e-6)
    assert ms % 1000 == 0 or delay.step_s < 1


@given(st.datetimes(datetime(1970, 1, 1), datetime(2500, 1, 1)))  # noqa: DTZ001 - hypothesis wants them naive
def test_dates_come_back(moment):
    """A moment written as an HTTP date or by RFC 3339 is read as the same moment."""
    moment = moment.replace(tzinfo=UTC, microsecond=0)
    assert read_http_date(format_datetime(moment, usegmt=True)) == moment.timestamp()
    assert read_iso_time(moment.isoformat().replace("+00:00", "Z")) == moment.timestamp()


@given(st.integers(1_600_000_000, 2_500_000_000), st.integers(0, 86_400))
def test_moments_are_held_against_the_date(now_s, wait_s):
    """A Unix time in seconds, in milliseconds and as text tells the same wait, whatever our clock says."""
    date = format_datetime(datetime.fromtimestamp(now_s, UTC), usegmt=True)
    moment = datetime.fromtimestamp(now_s + wait_s, UTC)
    for text in (str(now_s + wait_s), f"{now_s + wait_s}000", moment.isoformat()):
        delay = read_delay(text, date)
        assert delay is not None
        assert (delay.seconds, delay.step_s) == (wait_s, 1.0)


@pytest.mark.parametrize(
    "value",
    [
        "9" * 1_000_000,
        '"a";r=1,' * 100_000,
        "1," * 500_000,
        '"' * 1_000_000,
        "(" * 1_000_000,
        ";a" * 500_000,
        "limit=1, " * 100_000,
        "1h" * 500_000,
        "0" * 1_000_000 + "/1",
        " " * 1_000_000,
        '"' + "\\" * 999_999,
        "a" * 4000,
    ],
    ids=lambda value: f"{value[:8]!r}",
)
def test_a_megabyte_costs_nothing(value):
    """A value of a megabyte under every name is told to be none in a few milliseconds."""
    headers = dict.fromkeys(NAMES, value)
    began_s = time.process_time()
    for _ in range(5):
        assert read_feedback(headers) is None
    assert (time.process_time() - began_s) / 5 < 0.1


def test_many_limits_are_cut():
    """Of a field with very many policies the first few are taken."""
    policies = ", ".join(f"1;w={n}" for n in range(1, 300))
    feedback = read_feedback({"ratelimit-policy": policies})
    assert feedback is not None
    assert len(feedback.observations) == 16
