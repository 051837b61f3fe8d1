"""Retry-After and backoff: when an API is asked again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callmill.workers.backoff import full_jitter_s
from callmill.workers.retry_after import LONGEST_S, retry_after_s

NOON = "Sat, 01 Jan 2050 12:00:00 GMT"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "120"}, 120.0),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "1e9"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "9" * 400}, LONGEST_S),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "٣"}, None),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "x", "retry-after": "9"}, 9.0),
        ({"retry-after": "Sat, 01 Jan 2050 12:00:30 GMT", "date": NOON}, 30.0),
        ({"retry-after": "Sat, 01 Jan 2050 11:00:00 GMT", "date": NOON}, 0.0),
        ({"retry-after": "Sun, 02 Jan 2050 12:00:00 GMT", "date": NOON}, LONGEST_S),
        ({"retry-after": "Sat, 01 Jan 2050 12:00:30 -0000", "date": NOON}, 30.0),
        ({"retry-after": "Sat, 99 Jan 2050 12:00:30 GMT", "date": NOON}, None),
        ({"retry-after": "Sat, 01 Jan 99999999999 12:00:30 GMT", "date": NOON}, None),
    ],
)
def test_forms_of_retry_after(headers, seconds):
    """Seconds, fractions, milliseconds and dates are understood and bounded; anything else is no wish."""
    assert retry_after_s(headers) == seconds


def test_date_without_date_header_counts_from_now():
    """A date in an answer that does not say when it was given counts from our own clock."""
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert 55 < (retry_after_s({"retry-after": later, "date": "yesterday"}) or 0) <= 60


@given(st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms", "date"]), st.text(max_size=40)))
def test_any_text_is_harmless(headers):
    """Whatever an API writes there, the answer is None or within bounds."""
    seconds = retry_after_s(headers)
    assert seconds is None or 0 <= seconds <= LONGEST_S


@given(attempts=st.integers(1, 10**6), base_s=st.floats(0.001, 1e3), cap_s=st.floats(0.001, 1e6))
def test_backoff_stays_in_bounds(attempts, base_s, cap_s):
    """A delay is never negative, never above the cap, and never above the base doubled per attempt."""
    delay_s = full_jitter_s(attempts, base_s, cap_s)
    assert 0 <= delay_s <= cap_s
    assert delay_s <= base_s * 2.0 ** min(attempts - 1, 900)


def test_backoff_uses_its_whole_range():
    """Delays fill the range from 0 to the bound, so that calls that failed together come back apart."""
    delays = [full_jitter_s(3, 0.5, 30) for _ in range(2000)]
    assert min(delays) < 0.2
    assert 1.8 < max(delays) <= 2.0
    assert 0.9 < sum(delays) / len(delays) < 1.1
