"""Limits as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callmill.config.limit_spec import LimitSpec, Unit, parse_limit


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("500/minute", LimitSpec(500, Unit.REQUESTS, 60)),
        ("10/s", LimitSpec(10, Unit.REQUESTS, 1)),
        ("10 per second", LimitSpec(10, Unit.REQUESTS, 1)),
        ("5000 requests/hour", LimitSpec(5000, Unit.REQUESTS, 3600)),
        ("1 call / day", LimitSpec(1, Unit.REQUESTS, 86400)),
        ("200_000 tokens/min", LimitSpec(200_000, Unit.TOKENS, 60)),
        ("200000 Tokens/Minutes", LimitSpec(200_000, Unit.TOKENS, 60)),
        (" 64 concurrent ", LimitSpec(64, Unit.CONCURRENT, 0)),
    ],
)
def test_accepted_forms(text, spec):
    """Every documented form, and its usual variants, means what it says."""
    assert parse_limit(text) == spec


@pytest.mark.parametrize(
    "text",
    ["", "500", "/minute", "500/fortnight", "-5/second", "1.5/second", "500 tokens", "64 concurrent/minute", "5//s"],
)
def test_refused_forms_show_the_accepted_ones(text):
    """What is no limit is refused with the text and an example of a limit."""
    with pytest.raises(ValueError, match="write '500/minute'") as refusal:
        parse_limit(text)
    assert repr(text) in str(refusal.value)


@pytest.mark.parametrize("text", ["0/second", "0 concurrent", "0 tokens/day"])
def test_zero_is_no_limit(text):
    """A limit of nothing is refused with the remedy: pausing."""
    with pytest.raises(ValueError, match="pause"):
        parse_limit(text)


@given(
    amount=st.integers(1, 10**12),
    kind=st.sampled_from([(u, w) for u in (Unit.REQUESTS, Unit.TOKENS) for w in (1, 60, 3600, 86400)]
                         + [(Unit.CONCURRENT, 0)]),
)  # fmt: skip
def test_text_round_trip(amount, kind):
    """A limit written as text reads back as the same limit: workers publish it that way."""
    spec = LimitSpec(amount, *kind)
    assert parse_limit(str(spec)) == spec
