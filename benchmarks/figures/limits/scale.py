"""LimitScale: how long each figure of the limiter is measured."""

from __future__ import annotations

from msgspec import Struct


class LimitScale(Struct, frozen=True, kw_only=True):
    """How long each figure is measured.

    Attributes:
        runs: Runs of each case; their median is the figure.
        seconds: Seconds of one run.
        long_window_s: Seconds of one run against windows of a minute.
        tokens_s: Seconds at a limit of tokens per minute.
        killing_s: Seconds during which workers are killed.
        restarts: How often Redis is restarted.
        fairness_s: Seconds at one call a second, simulated.
        fairness_real_s: The same with real processes.
        short_s: Seconds of what needs no long run.
    """

    runs: int
    seconds: float
    long_window_s: float
    tokens_s: float
    killing_s: float
    restarts: int
    fairness_s: float
    fairness_real_s: float
    short_s: float


FULL = LimitScale(
    runs=3,
    seconds=60,
    long_window_s=180,
    tokens_s=180,
    killing_s=60,
    restarts=3,
    fairness_s=600,
    fairness_real_s=64,
    short_s=20,
)
QUICK = LimitScale(
    runs=1,
    seconds=10,
    long_window_s=10,
    tokens_s=30,
    killing_s=12,
    restarts=1,
    fairness_s=600,
    fairness_real_s=32,
    short_s=5,
)
