"""SingleCall: one call outside any batch, for the plain task."""

from __future__ import annotations

import asyncio

from callmill.errors import OutsideError
from callmill.holds import held_in_words
from callmill.jobs.trace_context import TraceContext
from callmill.jobs.traffic import NORMAL
from callmill.jobs.wire import WireJob, WireOutcome
from callmill.workers.call import Call, Postponed
from callmill.workers.lane import Lane
from callmill.workers.outcomes import outcome_too_late

HELD_PATIENCE_S = 5.0
"""How long a call waits for a held API: it may be the call that tests it."""


class CallNotDoneError(OutsideError):
    """The call failed in a way that another attempt may mend."""


class SingleCall:
    """Owns one call; its caller awaits ``outcome`` and handles further attempts.

    Args:
        job: The call.
        lane: Makes it.
        key: The source of its idempotency key.
        trace: The trace that it belongs to.
        repeated: Whether an earlier attempt of the same caller failed.
    """

    def __init__(
        self, job: WireJob, lane: Lane, key: str, trace: TraceContext | None = None, *, repeated: bool = False
    ) -> None:
        self.outcome: asyncio.Future[WireOutcome] = asyncio.get_running_loop().create_future()
        self.traffic = NORMAL
        self._lane = lane
        self._call = Call(job, self, 0, 0, key)
        self._call.trace = trace
        self._call.repeated = repeated
        self._in_flight = False
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, deadline_in_s: float | None = None) -> None:
        """Hand the call to the lane; ``deadline_in_s``: seconds after which it may no longer start."""
        if deadline_in_s is not None:
            loop = asyncio.get_running_loop()
            self._call.deadline_s = loop.time() + deadline_in_s
            timer = loop.call_at(self._call.deadline_s, self._deadline_passed)
            self.outcome.add_done_callback(lambda _: timer.cancel())
            if deadline_in_s <= 0:
                return
        self._lane.add(self, [self._call])
        self._look_later()
        self.outcome.add_done_callback(self._over)

    def may_start(self, call: Call, now_s: float) -> bool:  # noqa: ARG002 - the port's signature
        """Say whether it is still wanted."""
        return not self.outcome.done()

    def started(self, call: Call) -> None:  # noqa: ARG002 - the port's signature
        """Record that an attempt begins: a deadline does not end it."""
        self._in_flight = True

    def record(self, call: Call, outcome: WireOutcome) -> None:  # noqa: ARG002 - the port's signature
        """Pass the outcome on."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)

    def refuse(self, call: Call, outcome: WireOutcome) -> None:
        """Pass the outcome on."""
        self.record(call, outcome)

    def postpone(self, call: Call, postponed: Postponed) -> None:
        """Try again where that spends no attempt; else leave the next attempt to the caller."""
        self._in_flight = False
        if self.outcome.done():
            return
        if call.deadline_s is not None and asyncio.get_running_loop().time() >= call.deadline_s:
            self.refuse(call, outcome_too_late(call))
        elif not postponed.spends_attempt:
            self._lane.add_first(call)
        else:
            self.outcome.set_exception(CallNotDoneError(f"{postponed.code}: {postponed.message}"))

    def _deadline_passed(self) -> None:
        if not self._in_flight:
            self.refuse(self._call, outcome_too_late(self._call))

    def interrupted(self, call: Call) -> None:  # noqa: ARG002 - the port's signature
        """Tell the caller that the attempt was cut off."""
        if not self.outcome.done():
            self.outcome.set_exception(CallNotDoneError("interrupted: the worker stopped in the middle of the call"))

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(HELD_PATIENCE_S, self._look)

    def _look(self) -> None:
        """Fail the call if its API is held, which may last for days."""
        if self.outcome.done():  # its deadline passed in the same turn of the loop
            return
        if self._lane.held and not self._in_flight:
            self.outcome.set_exception(CallNotDoneError(held_in_words(self._lane.api, self._lane.held)))
        else:
            self._look_later()

    def _over(self, _: asyncio.Future[WireOutcome]) -> None:
        """Leave nothing behind: while the API is held nobody takes a call that is not wanted out of the queue."""
        if self._timer is not None:
            self._timer.cancel()
        if not self._in_flight:
            self._lane.forget(self)
