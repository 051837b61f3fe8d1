"""What a process concludes from its own lateness."""

from __future__ import annotations

import pytest

from callmill.limits.timing import Timing

VALIDITY_S = 0.005
FORCE_S = 0.2


def watched(*, fired_s: list[float], dropped_s: list[float]) -> Timing:
    """Return the timing of a process that fired and dropped slots so late, after two exchanges with Redis."""
    timing = Timing(VALIDITY_S, None)
    for late_s in fired_s:
        timing.fired(late_s)
    for late_s in dropped_s:
        timing.dropped(late_s)
    for now_s in (0.0, 2.0):
        timing.round_trip(0.001, now_s, FORCE_S)
    return timing


@pytest.mark.parametrize(
    ("fired", "dropped", "late_s", "validity_s"),
    [
        (20, 0, 0.0, VALIDITY_S),
        (15, 5, 0.008, 2 * VALIDITY_S),
        (15, 5, 0.015, 4 * VALIDITY_S),
        (15, 5, 0.100, VALIDITY_S),  # no validity would save them
        (10, 5, 0.008, VALIDITY_S),  # too few to tell
    ],
)
def test_slots_are_valid_for_longer_where_that_saves_many(fired, dropped, late_s, validity_s):
    """A host that is too late for a part of its slots gives them more time as soon as twenty show the need."""
    timing = watched(fired_s=[0.001] * fired, dropped_s=[late_s] * dropped)
    assert timing.validity_s == validity_s
    assert timing.guard_s > validity_s
