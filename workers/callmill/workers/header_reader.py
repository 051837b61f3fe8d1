"""HeaderReader: reads what the headers of answers say of limits; of good answers only now and then."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from http import HTTPStatus

from callmill.limits.feedback import Feedback
from callmill.limits.headers import read_feedback
from callmill.workers.transports.port import Response

_GOOD_BELOW = HTTPStatus.MULTIPLE_CHOICES.value
_GOOD_EVERY_S = 0.1
"""Often enough to follow them."""


class HeaderReader:
    """Belongs to one lane.

    Args:
        throttle_statuses: Those that may be refusals by the API's profile.
        now: Returns the event loop's time in seconds.
    """

    def __init__(self, throttle_statuses: AbstractSet[int], now: Callable[[], float]) -> None:
        self._throttle_statuses = throttle_statuses
        self._now = now
        self._read_s = float("-inf")

    def read(self, answer: Response) -> Feedback | None:
        """Return what the answer's headers say; None where nobody looked."""
        if answer.status < _GOOD_BELOW and answer.status not in self._throttle_statuses:
            now_s = self._now()
            if now_s < self._read_s + _GOOD_EVERY_S:
                return None
            self._read_s = now_s
        return read_feedback(answer.headers)
