"""Backoff: when a call that failed is made again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from callmill.workers.backoff import full_jitter_s


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
