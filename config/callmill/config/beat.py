"""The beat: what looks at something now and then looks together.

Each waking of an idle processor costs more than the look itself; a process wakes once for all of them. Beats of which
one comes a whole number of times as often as another fall together.
"""

from __future__ import annotations

import asyncio
import random

AT_REST_S = 0.5
"""The shortest beat."""

_PHASE_S = random.random()  # noqa: S311 - so that processes do not ask Redis all at once
_TOO_SOON = 0.2
"""Of a beat: timers may come a little early, and none is to come twice."""


def until_beat_s(every_s: float) -> float:
    """Return seconds until the next beat of those that come this often, on the running loop's clock."""
    left_s = every_s - (asyncio.get_running_loop().time() - _PHASE_S) % every_s
    return left_s if left_s > _TOO_SOON * every_s else left_s + every_s
