"""Parking: whether an API's limits hold its calls back for so long that another API should serve them. Pure."""

from __future__ import annotations

from callmill.limits import Limiter

PARKED_S = 5.0
"""A pause that is longer: answers may have asked for it, or people."""

_SPENT_S = 90.0
"""A next start that is further away: a quota is spent, for limits per minute start a call a minute at least."""


def is_parked(limiter: Limiter) -> bool:
    """Say whether no call may start for long."""
    return limiter.paused_for_s > PARKED_S or (limiter.next_start_in_s or 0.0) > _SPENT_S
