"""BusyAnswers: tells a 503 of a limiter from one of a server in trouble.

nginx answers 503 with a page of its own where its limit_req or limit_conn refuses, unless it was told otherwise.
It sends that page for maintenance, too; but a limiter takes other calls at the same time, and takes the refused one
when it comes again more slowly. A 503 of the application behind it has another body: an API that fails now and then
is no limiter.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from callmill.workers.call import Call
from callmill.workers.throttling import Throttled, status_line
from callmill.workers.transports.port import Response
from callmill.workers.verdict import SUCCEEDED, Retryable, Verdict

_PAGE = b"<title>503 Service Temporarily Unavailable</title>"
"""In nginx's own page, and in OpenResty's."""

_LONGEST_PAGE = 4096
_TOGETHER_S = 1.0
"""An API that took a call within this time takes calls."""

_SURE_FOR_S = 60.0
"""For so long an API that has proved to be a limiter is believed to refuse, whether it takes calls or not."""

_DOUBTED_FOR_S = 600.0
"""For so long no 503 counts as a limiter's after one job got several."""

_MOST = 4
"""So often one job may get a 503 before it counts as its own trouble."""


class BusyAnswers:
    """What the 503s of one API mean; ``now``: the event loop's time in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._took_s = self._proved_s = self._doubted_s = float("-inf")

    def judged(self, call: Call, verdict: Verdict, answer: Response) -> Verdict:
        """Return what an answer means, where other answers of the API tell more than it alone."""
        if verdict is SUCCEEDED:
            self._took_s = self._now()
            if call.busy:
                self._proved_s = self._took_s
            return verdict
        if not isinstance(verdict, Retryable) or not _is_page(answer) or not self._refuses():
            return verdict
        if call.busy >= _MOST:
            self._doubted_s = self._now()
            return verdict
        call.busy += 1
        return Throttled(
            verdict.after_s or None, f"{status_line(answer.status)}, while it took other calls", code=verdict.code
        )

    def _refuses(self) -> bool:
        """Say whether the API is one that refuses by 503 now."""
        now_s = self._now()
        if now_s - self._doubted_s < _DOUBTED_FOR_S:
            return False
        return now_s - self._took_s < _TOGETHER_S or now_s - self._proved_s < _SURE_FOR_S


def _is_page(answer: Response) -> bool:
    return answer.status == HTTPStatus.SERVICE_UNAVAILABLE and _PAGE in answer.body[:_LONGEST_PAGE]
