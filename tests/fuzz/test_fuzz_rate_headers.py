"""Rate headers: whatever a server sends is read as something bounded, or as nothing."""

from __future__ import annotations

from fuzzing import fuzz
from hypothesis import strategies as st

from callmill.limits.headers import LONGEST_RETRY_AFTER_S, read_feedback

_NAMES = (
    "ratelimit",
    "ratelimit-policy",
    "retry-after",
    "retry-after-ms",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
)


@fuzz(st.dictionaries(st.sampled_from(_NAMES), st.text(max_size=200)))
def test_no_headers_raise(headers: dict[str, str]) -> None:
    """Reading headers never raises, and no pause is longer than the longest."""
    feedback = read_feedback(headers)
    assert feedback is None or feedback.retry_after_s is None or feedback.retry_after_s <= LONGEST_RETRY_AFTER_S
