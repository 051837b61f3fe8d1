"""What a worker process says of how it fares."""

from __future__ import annotations

import time

from callmill.workers.vitals import Vitals


def test_calls_per_second_are_of_the_last_seconds(monkeypatch):
    """Calls are told per second, over the latest looks only; none before there are two."""
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    vitals = Vitals()
    assert vitals.calls_per_s == 0
    calls = 0
    for made, told in ((7, 0), (50, 50), (150, 100), (100, 100), (100, 100), (100, 100), (50, 100), (50, 80)):
        calls += made
        vitals.cpu_us_per_call(calls)
        assert vitals.calls_per_s == told
        now_s += 1.0
