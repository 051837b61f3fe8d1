"""Latencies: what may be written, and what is drawn."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callmill.simulator.latency import Latency, LatencyShape, parse_duration_s, parse_latency


@pytest.mark.parametrize(
    ("text", "latency"),
    [
        ("20ms", Latency(LatencyShape.CONSTANT, 0.02, 0.02)),
        ("1.5s", Latency(LatencyShape.CONSTANT, 1.5, 1.5)),
        ("0ms", Latency()),
        ("10ms-50ms", Latency(LatencyShape.UNIFORM, 0.01, 0.05)),
        ("500us - 2ms", Latency(LatencyShape.UNIFORM, 0.0005, 0.002)),
        ("lognormal:50ms,p99=400ms", Latency(LatencyShape.LOGNORMAL, 0.05, 0.4)),
    ],
)
def test_each_form_is_read(text, latency):
    """Every documented form gives its distribution."""
    assert parse_latency(text) == latency


@pytest.mark.parametrize(
    "text", ["", "20", "fast", "-5ms", "50ms-10ms", "lognormal:50ms", "lognormal:0ms,p99=1ms", "lognormal:2ms,p99=1ms"]
)
def test_what_is_no_latency_is_refused(text):
    """A text that is no latency raises a ValueError and never becomes a distribution."""
    with pytest.raises(ValueError, match=r"duration|median"):
        parse_latency(text)


@given(st.integers(0, 10**7), st.integers(0, 10**7))
def test_the_text_of_a_latency_reads_back_as_it(first_us, second_us):
    """str() of a uniform latency parses to the same bounds."""
    low_us, high_us = sorted((first_us, second_us))
    again = parse_latency(str(parse_latency(f"{low_us}us-{high_us}us")))
    assert again.low_s == pytest.approx(low_us / 1e6, rel=1e-9)
    assert again.high_s == pytest.approx(high_us / 1e6, rel=1e-9)


def test_lognormal_draws_have_the_median_and_the_p99_asked_for():
    """Half of many draws lie below the median and 99 % below the p99."""
    latency, random = parse_latency("lognormal:50ms,p99=400ms"), Random(1)
    drawn = sorted(latency.draw_s(random) for _ in range(20_000))
    assert drawn[10_000] == pytest.approx(0.05, rel=0.05)
    assert drawn[19_800] == pytest.approx(0.4, rel=0.1)


def test_uniform_draws_fill_the_range_and_keep_to_it():
    """Uniform draws lie within the bounds and come close to both."""
    latency, random = parse_latency("10ms-50ms"), Random(1)
    drawn = [latency.draw_s(random) for _ in range(2000)]
    assert 0.01 <= min(drawn) < 0.011
    assert 0.049 < max(drawn) <= 0.05


def test_a_duration_needs_a_unit():
    """A number without a unit is refused, since seconds and milliseconds are easily confused."""
    with pytest.raises(ValueError, match="20ms"):
        parse_duration_s("5")
