"""SingleCall: one call outside any batch, for the plain task."""

from __future__ import annotations

import asyncio

from callmill.errors import OutsideError
from callmill.jobs.trace_context import TraceContext
from callmill.jobs.traffic import NORMAL
from callmill.jobs.wire import WireJob, WireOutcome
from callmill.workers.call import Call, Postponed
from callmill.workers.lane import Lane


class CallNotDoneError(OutsideError):
    """The call failed in a way that another attempt may mend."""


class SingleCall:
    """Owns one call; its caller awaits ``outcome``. Attempts are the caller's business."""

    def __init__(self, job: WireJob, lane: Lane, key: str, trace: TraceContext | None = None) -> None:
        self.outcome: asyncio.Future[WireOutcome] = asyncio.get_running_loop().create_future()
        self.traffic = NORMAL
        self._lane = lane
        self._call = Call(job, self, 0, 0, key)
        self._call.trace = trace

    def begin(self) -> None:
        """Hand the call to the lane."""
        self._lane.add(self, [self._call])

    def may_start(self, call: Call, now_s: float) -> bool:  # noqa: ARG002 - the port's signature
        """Say whether it is still wanted."""
        return not self.outcome.done()

    def started(self, call: Call) -> None:
        """Nothing to note: there is no one else's call to wait for."""

    def record(self, call: Call, outcome: WireOutcome) -> None:  # noqa: ARG002 - the port's signature
        """Pass the outcome on."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)

    def refuse(self, call: Call, outcome: WireOutcome) -> None:
        """Pass the outcome on."""
        self.record(call, outcome)

    def postpone(self, call: Call, postponed: Postponed) -> None:
        """Try again where that spends no attempt; else leave the next attempt to the caller."""
        if not postponed.spends_attempt:
            self._lane.add_first(call)
        elif not self.outcome.done():
            self.outcome.set_exception(CallNotDoneError(f"{postponed.code}: {postponed.message}"))

    def interrupted(self, call: Call) -> None:  # noqa: ARG002 - the port's signature
        """Tell the caller that the attempt was cut off."""
        if not self.outcome.done():
            self.outcome.set_exception(CallNotDoneError("interrupted: the worker stopped in the middle of the call"))
