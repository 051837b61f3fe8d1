"""The map from Redis's clock to the monotonic clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callmill.limits.clock import DRIFT, RedisClock

OFFSET_S = -1_000_000.0


def exchange(clock, at_s, *, there_s=0.001, back_s=0.001, ahead_s=0.0):
    """Let an exchange read Redis's clock at ``at_s``; Redis's clock is ``ahead_s`` ahead of what it was."""
    return clock.observe(round((at_s - OFFSET_S + ahead_s) * 1e6), at_s - there_s, at_s + back_s)


def local(clock, at_s, ahead_s=0.0):
    """Return when the map says that Redis's clock shows what it shows at ``at_s``."""
    return clock.local_s(round((at_s - OFFSET_S + ahead_s) * 1e6), at_s)


@given(
    trips=st.lists(st.tuples(st.floats(1e-5, 0.5), st.floats(1e-5, 0.5), st.floats(0, 5)), min_size=1, max_size=30),
    drift=st.floats(-0.9 * DRIFT, 0.9 * DRIFT),
)
def test_however_slow_the_exchanges_the_map_is_never_early(trips, drift):
    """Delays and drift never make the map early, nor later than the fastest way back, nor look like a jump ahead."""
    clock, at, fastest = RedisClock(), 0.0, float("inf")
    for there, back, pause in trips:
        at, fastest = at + pause + 1.0, min(fastest, back)
        assert not exchange(clock, at, there_s=there, back_s=back, ahead_s=drift * at)
        late = local(clock, at, drift * at) - at
        assert -2e-6 <= late <= fastest + 2e-6 + 2 * DRIFT * at


def test_the_fastest_answer_decides():
    """Slower answers that follow a fast one leave the map as good as that made it, but for the drift."""
    clock = RedisClock()
    exchange(clock, 1.0, back_s=0.0001)
    for index in range(60):
        exchange(clock, 2.0 + index / 10, there_s=0.15, back_s=0.2)
    assert 0 <= local(clock, 8.0) - 8.0 <= 0.0001 + 8 * DRIFT


@pytest.mark.parametrize("jump_s", [5.0, 0.3, 0.02])
def test_a_step_ahead_is_told_once_and_the_map_follows_it(jump_s):
    """The first exchange after Redis's clock was set ahead tells so; from then on the map is right."""
    clock = RedisClock()
    exchange(clock, 1.0)
    assert exchange(clock, 2.0, ahead_s=jump_s)
    assert local(clock, 2.5, jump_s) == pytest.approx(2.5, abs=0.0012)
    assert not exchange(clock, 2.1, ahead_s=jump_s)


@pytest.mark.parametrize("jump_s", [-5.0, -0.3, -0.02])
def test_a_step_behind_is_followed_at_once(jump_s):
    """After one exchange with a Redis whose clock was set back, the map is right."""
    clock = RedisClock()
    exchange(clock, 1.0)
    assert not exchange(clock, 2.0, ahead_s=jump_s)
    assert local(clock, 3.0, jump_s) == pytest.approx(3.0, abs=0.0012)


def test_a_clock_that_is_being_corrected_does_not_jump():
    """A difference within a round trip and a millisecond is followed, not told."""
    clock = RedisClock()
    exchange(clock, 1.0)
    assert not exchange(clock, 2.0, ahead_s=0.0025)
    assert local(clock, 2.0, 0.0025) == pytest.approx(2.0, abs=0.0011)


def test_another_redis_is_no_jump():
    """After ``forget`` any clock is believed."""
    clock = RedisClock()
    exchange(clock, 1.0)
    clock.forget()
    assert not exchange(clock, 2.0, ahead_s=3600.0)
    assert local(clock, 2.0, 3600.0) == pytest.approx(2.0, abs=0.0011)
