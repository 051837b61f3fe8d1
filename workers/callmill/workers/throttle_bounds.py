"""ThrottleBounds: how often, and for how long, an API may refuse one job because of its limits."""

from __future__ import annotations

from collections.abc import Callable

from callmill.config.profiles import ApiProfile
from callmill.workers.call import Call
from callmill.workers.throttling import span
from callmill.workers.verdict import Failed

THROTTLED = "throttled"
"""The code of jobs that were refused too often, or for too long."""


class ThrottleBounds:
    """Counts the refusals of one API's calls, and fails the calls that reach a bound of its profile.

    One refusal pauses one credential, so each of a pool may refuse a job as often as the only one of another API.

    Args:
        profile: The API's profile.
        now: Returns the event loop's time in seconds.
    """

    def __init__(self, profile: ApiProfile, now: Callable[[], float]) -> None:
        self._api = profile.name
        self._most = profile.throttle.max_refusals * max(1, len(profile.auth))
        self._longest_s = profile.throttle.max_wait
        self._now = now

    def refused(self, call: Call, reason: str) -> Failed | None:
        """Count a refusal; return how the call fails for good, where it may be refused no more."""
        now_s = self._now()
        if not call.throttles:
            call.throttled_since_s = now_s
        call.throttles += 1
        took_s = now_s - call.throttled_since_s
        bounds = ((call.throttles >= self._most, "max_refusals"), (took_s >= self._longest_s, "max_wait"))
        reached = " and ".join(f"throttle.{key}" for is_reached, key in bounds if is_reached)
        if not reached:
            return None
        how_often = "once" if call.throttles == 1 else f"{call.throttles} times within {span(max(1.0, took_s))}"
        return Failed(
            THROTTLED,
            f"refused {how_often} because of the API's limits: raise {reached} in the profile of {self._api}, "
            f"or run the job again with callmill retry; the last time: {reason}",
        )
