"""Backoff: how long a failed call waits before the next attempt."""

from __future__ import annotations

import random


def full_jitter_s(attempts: int, base_s: float, cap_s: float) -> float:
    """Return seconds drawn evenly from 0 to ``base_s`` doubled with every attempt, never above ``cap_s``.

    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 ("full jitter").
    """
    # 2.0 ** 1024 overflows; no cap needs more than 64 doublings.
    return random.uniform(0, min(cap_s, base_s * 2.0 ** min(attempts - 1, 64)))  # noqa: S311 - spread, not secrecy
