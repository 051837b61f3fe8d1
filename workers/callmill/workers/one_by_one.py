"""OneByOne: hands the calls of one chunk to their lane one after the other, each noted in the ledger before.

The note stands while an attempt is under way. A worker that dies afterwards, while the job waits for another attempt,
did not die of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from callmill.errors import RedisUnavailableError, StaleLeaseError
from callmill.jobs.traffic import TrafficClass
from callmill.jobs.wire import WireOutcome
from callmill.workers.call import Call, CallOwner, Postponed
from callmill.workers.lane import Lane
from callmill.workers.suspicion import NO_JOB

log = logging.getLogger(__name__)

_NOTE_AGAIN_S = 0.5


class OneByOne:
    """Stands between a chunk and its lane: to the chunk it is the lane, to the lane the calls' owner.

    Args:
        lane: Makes the calls.
        traffic: The class of its calls.
        note: Notes the offset of the job that is next, or ``NO_JOB``.
        first: Offset of the job that goes before all others.
    """

    def __init__(
        self, lane: Lane, traffic: TrafficClass, note: Callable[[int], Awaitable[None]], *, first: int | None
    ) -> None:
        self.traffic = traffic
        self._lane = lane
        self._note = note
        self._first = first
        self._waiting: deque[Call] = deque()
        self._out: Call | None = None
        self._noted = NO_JOB
        self._noting = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._owner: CallOwner

    def add(self, owner: CallOwner, calls: Sequence[Call], *, first: int = 0) -> None:  # noqa: ARG002 - there are no others
        """Take the calls of the chunk in."""
        self._owner = owner
        self._waiting.extend(sorted(calls, key=lambda call: call.offset != self._first))
        self._next()

    def add_first(self, call: Call) -> None:
        """Take a call in before the others, or behind them where it lets them go first."""
        if call.lets_others_go_first:
            self._waiting.append(call)
        else:
            self._waiting.appendleft(call)
        self._next()

    def forget(self, owner: CallOwner) -> None:  # noqa: ARG002 - there is one
        """Drop the calls that wait."""
        self._waiting.clear()
        self._lane.forget(self)

    def will_retry(self, call: Call, *, wanted: bool) -> None:
        """Take note that a call will want another attempt, or does so no more."""
        self._lane.will_retry(call, wanted=wanted)

    def retry_wait_s(self, call: Call) -> float:
        """Return 0 where a call may stand in line again; else seconds until it may ask."""
        return self._lane.retry_wait_s(call)

    def may_start(self, call: Call, now_s: float) -> bool:
        """Say whether the call may still start; the lane drops one that may not, and the next one comes."""
        if self._owner.may_start(call, now_s):
            return True
        self._over(call)
        return False

    def started(self, call: Call) -> None:
        """Note that an attempt begins."""
        self._owner.started(call)

    def record(self, call: Call, outcome: WireOutcome) -> None:
        """Take the call's outcome, and go on."""
        self._owner.record(call, outcome)
        self._over(call)

    def refuse(self, call: Call, outcome: WireOutcome) -> None:
        """Take the outcome of a call that is over without an attempt, and go on."""
        self._owner.refuse(call, outcome)
        self._over(call)

    def postpone(self, call: Call, postponed: Postponed) -> None:
        """Take the call back for another attempt, and go on."""
        self._owner.postpone(call, postponed)
        self._over(call)

    def interrupted(self, call: Call) -> None:
        """Note that the attempt was cancelled."""
        self._owner.interrupted(call)
        self._over(call)

    def _over(self, call: Call) -> None:
        if self._out is call:
            self._out = None
            self._next()

    def _next(self) -> None:
        if self._out is None and self._waiting:
            self._out = self._waiting.popleft()
            self._task = asyncio.ensure_future(self._hand_over(self._out))
        elif self._out is None and self._noted != NO_JOB:
            self._task = asyncio.ensure_future(self._survived())

    async def _hand_over(self, call: Call) -> None:
        loop = asyncio.get_running_loop()
        while self.may_start(call, loop.time()):
            try:
                if call.offset == self._noted:  # survived: another attempt begins without the deaths of earlier ones
                    await self._take_note(NO_JOB)
                await self._take_note(call.offset)
            except StaleLeaseError:
                return  # the renewal tells the chunk
            except RedisUnavailableError as error:
                log.warning("not noted: %s", error, extra={"action": "note_failed", "job": call.key})
                await asyncio.sleep(_NOTE_AGAIN_S)
                continue
            if self.may_start(call, loop.time()):
                call.owner = self
                self._lane.add(self, [call])
            return

    async def _survived(self) -> None:
        with suppress(StaleLeaseError, RedisUnavailableError):
            await self._take_note(NO_JOB)

    async def _take_note(self, offset: int) -> None:
        async with self._noting:
            await self._note(offset)
            self._noted = offset
