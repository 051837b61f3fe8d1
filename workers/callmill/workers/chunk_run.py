"""ChunkRun: one claimed chunk while its calls are made.

It ends when every job is recorded, when all that is left must wait longer than it may be held, or when it is closed:
time budget over, shutdown, batch paused. What is left then goes back as the remainder.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Protocol

from callmill.jobs.chunk_reader import ReadChunk
from callmill.jobs.traffic import TrafficClass
from callmill.jobs.wire import Chunk, WireOutcome, assigned_id
from callmill.jobs.wire_checks import Problem
from callmill.ledger import Bundle, Claim, Finish, Throttles
from callmill.workers.call import Call, CallOwner, Postponed
from callmill.workers.outcomes import outcome_too_late, outcome_without_answer
from callmill.workers.suspicion import Stage, stage_of, verdict
from callmill.workers.throttle_bounds import THROTTLED

BUDGET_S = 30.0
"""How long a chunk is held before the rest of it goes back, so that others get their turn."""

_WERE_IN_HAND = 64
"""So many jobs of a chunk that was claimed before go before others: most that were under way are among them."""

HELD_FOR_BACKOFF_S = 2.0
"""How long a chunk is held when all that is left of it waits for a retry."""


class Caller(Protocol):
    """Who makes a chunk's calls: a lane, or what stands before it."""

    def add(self, owner: CallOwner, calls: Sequence[Call], *, first: int = 0) -> None:
        """Take calls of one owner in, so many of them before the others of their class and the rest behind them."""
        ...

    def add_first(self, call: Call) -> None:
        """Take a call in before others, for it has waited already; or behind them where it lets them go first."""
        ...

    def forget(self, owner: CallOwner) -> None:
        """Drop the waiting calls of an owner."""
        ...

    def will_retry(self, call: Call, *, wanted: bool) -> None:
        """Take note that a call will want another attempt, or does so no more."""
        ...

    def retry_wait_s(self, call: Call) -> float:
        """Return 0 where a call may stand in line again; where the retry budget is spent, seconds until it may ask."""
        ...


class Recorder(Protocol):
    """Who brings a chunk's outcomes to the ledger."""

    def changed(self, run: ChunkRun, size_bytes: int = 0) -> None:
        """Note that the chunk has something to record, or so many bytes more of it."""
        ...

    def finished(self, run: ChunkRun, finish: Finish) -> None:
        """Note that the chunk is to be given up, after its last bundle."""
        ...


class ChunkRun:
    """The calls of one chunk. Belongs to one event loop.

    Attributes:
        claim: What was claimed.
        traffic: The class of its calls.
        bundle: What is to be recorded.
        over: Done when the ledger has taken its end, or somebody else has it.
        succeeded: Jobs that ended well here, and ``failed``, those that did not.

    Args:
        claim: What was claimed.
        chunk: Its jobs; None: they come with ``load``.
        lane: Makes the calls.
        recorder: Takes the outcomes.
        traffic: The class of its calls.
        lease_ends_s: When its lease ends, on the event loop's clock.
    """

    def __init__(
        self,
        claim: Claim,
        chunk: Chunk | None,
        lane: Caller,
        recorder: Recorder,
        *,
        traffic: TrafficClass,
        lease_ends_s: float,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.claim = claim
        self.traffic = traffic
        self.bundle = Bundle()
        self.over: asyncio.Future[None] = self._loop.create_future()
        self.succeeded = self.failed = 0
        self._latencies_us: list[int] = []
        self._lease_ends_s = lease_ends_s
        self._lane = lane
        self._recorder = recorder
        self._open = True
        self._ended = False
        self._in_flight: set[int] = set()
        self._began_s = self._loop.time()
        self._loaded = chunk is not None
        self._unrecorded = {} if chunk is None else self._calls_of(chunk)
        self._invalid: Mapping[int, Problem] = {}
        self._backoffs: dict[int, asyncio.TimerHandle] = {}
        self._due_s: dict[int, float] = {}
        self._stage = stage_of(claim)
        self._tried = self._out_of_time = False
        self._closes_s = float("inf")
        self._closer: asyncio.TimerHandle | None = None
        self._deadline_timer: asyncio.TimerHandle | None = None

    def load(self, read: ReadChunk) -> None:
        """Take the jobs in, before it begins."""
        if self._open:
            self._unrecorded, self._invalid, self._loaded = self._calls_of(read.chunk), read.invalid, True

    def begin(self) -> None:
        """Hand the calls to the lane, but for those that must wait for a retry, and those that must not be made."""
        if not self._open:
            return
        self._closes_s = self._loop.time() + BUDGET_S
        self._closer = self._loop.call_at(self._closes_s, self._time_is_over)
        if self._stage is Stage.CONVICT:
            self._convict()
            return
        if self._invalid:
            self._refuse_invalid()
        if not self._open:
            return
        claim = self.claim
        again = claim.not_before_ms.keys() | claim.attempts.keys()
        for offset in sorted(again & self._unrecorded.keys()):
            due_ms = claim.not_before_ms.get(offset, 0)
            self._wait(self._unrecorded[offset], max(0, due_ms - claim.now_ms) / 1000)
        calls = [call for offset, call in self._unrecorded.items() if offset not in again]
        last = [call for call in calls if call.lets_others_go_first]
        if last:
            calls = [call for call in calls if not call.lets_others_go_first]
        self._lane.add(self, [*calls, *last], first=min(_WERE_IN_HAND, len(calls)) if claim.claims else 0)
        self._refuse_late()
        self._end_if_over()

    def close(self) -> None:
        """Start no further calls; the chunk ends when those in flight have."""
        if not self._open:
            return
        self._open = False
        for offset, timer in self._backoffs.items():
            timer.cancel()
            self._due_s[offset] = timer.when()
            self._lane.will_retry(self._unrecorded[offset], wanted=False)
        self._backoffs.clear()
        if self._deadline_timer is not None:
            self._deadline_timer.cancel()
        self._lane.forget(self)
        self._end_if_over()

    def renewed(self, lease_ends_s: float) -> None:
        """Take note that the lease lasts until then, on the event loop's clock."""
        self._lease_ends_s = lease_ends_s

    def take_bundle(self, most_bytes: int) -> Bundle:
        """Take what is to be recorded, up to so many bytes of bodies; of a chunk that is over there is nothing."""
        if self.over.done():
            self.bundle = Bundle()
        return self.bundle.take(most_bytes)

    def recorded(self) -> None:
        """Take note that the ledger has its end."""
        if not self.over.done():
            self.over.set_result(None)

    def abandon(self) -> None:
        """Forget the chunk: the lease is somebody else's, nothing can be recorded any more."""
        if self.over.done():
            return
        self._ended = True
        self.close()
        self._stop_clock()
        self.over.set_result(None)

    def may_start(self, call: Call, now_s: float) -> bool:
        """Say whether the call may still start: not closed, and the lease holds. A lapsed lease closes the chunk."""
        if self._open and now_s >= self._lease_ends_s:
            self.close()
        return self._open and call.offset in self._unrecorded

    def started(self, call: Call) -> None:
        """Note that an attempt begins."""
        self._in_flight.add(call.offset)

    def record(self, call: Call, outcome: WireOutcome) -> None:
        """Take the outcome of a call whose attempt is over."""
        self._attempt_ended(call)
        self._tried = True
        self.bundle.latencies_us.append(outcome.latency_us)
        self._latencies_us.append(outcome.latency_us)
        self.bundle.throttled += outcome.error_code == THROTTLED
        self._take(call, outcome)

    def refuse(self, call: Call, outcome: WireOutcome) -> None:
        """Take the outcome of a call that is over without an attempt."""
        self._take(call, outcome)

    def postpone(self, call: Call, postponed: Postponed) -> None:
        """Wait for another attempt: in line at once, on a timer, or as part of the remainder."""
        self._attempt_ended(call, made=postponed.made)
        self._tried = True
        self.bundle.retries += postponed.spends_attempt
        self.bundle.throttled += postponed.throttled
        self._recorder.changed(self)
        self._wait(call, postponed.delay_s)
        self._end_if_over()

    def interrupted(self, call: Call) -> None:
        """Note that an attempt was cancelled; the call stays unrecorded and runs again."""
        call.attempts += 1
        self._attempt_ended(call)
        self._end_if_over()

    @property
    def put_back(self) -> int:
        """Jobs that have no outcome yet."""
        return len(self._unrecorded) if self._loaded else self.claim.count - len(self.claim.recorded)

    @property
    def p50_ms(self) -> float | None:
        """Median latency of its calls in milliseconds; None before the first."""
        return median(self._latencies_us) / 1000 if self._latencies_us else None

    @property
    def held_s(self) -> float:
        """Seconds since it was claimed."""
        return self._loop.time() - self._began_s

    def summary(self) -> str:
        """Say in a few words what came of the chunk so far."""
        parts, p50_ms = [f"{self.succeeded} ok", f"{self.failed} failed"], self.p50_ms
        if self.put_back:
            parts.append(f"{self.put_back} put back")
        if p50_ms is not None:
            parts.append(f"p50 {p50_ms:.0f} ms")
        return ", ".join(parts)

    def _convict(self) -> None:
        """Fail the suspect, and nothing else: its outcome must be recorded before another job is noted."""
        suspect = self.claim.suspect
        for call in [call for call in self._unrecorded.values() if suspect and call.offset == suspect.offset]:
            self._take(call, outcome_without_answer(call, "poison", verdict(self.claim)))
        self.close()

    def _refuse_invalid(self) -> None:
        """Fail what ``submit`` would have refused: somebody wrote the chunk without it."""
        for offset, (field, why) in self._invalid.items():
            if (call := self._unrecorded.get(offset)) is not None:
                self.refuse(call, outcome_without_answer(call, "invalid", f"{field}: {why}"))

    def _time_is_over(self) -> None:
        self._out_of_time = True
        self.close()

    def _stop_clock(self) -> None:
        if self._closer is not None:
            self._closer.cancel()

    def _calls_of(self, chunk: Chunk) -> dict[int, Call]:
        calls = {}
        claim, batch_id = self.claim, self.claim.ref.batch_id
        for offset, job in enumerate(chunk.jobs):
            if offset in claim.recorded:
                continue
            index = chunk.index(offset)
            call = calls[offset] = Call(job, self, offset, index, assigned_id(batch_id, index))
            call.attempts = claim.attempts.get(offset, 0)
            call.spared = claim.spared.get(offset, 0)
            if (refused := claim.throttles.get(offset)) is not None:
                call.throttles = refused.count
                call.throttled_since_s = self._began_s + (refused.since_ms - claim.now_ms) / 1000
            call.trace = chunk.trace
            deadline_ms = claim.deadline_ms
            if job.deadline_ms is not None:
                deadline_ms = job.deadline_ms if deadline_ms is None else min(job.deadline_ms, deadline_ms)
            if deadline_ms is not None:
                call.deadline_s = self._began_s + (deadline_ms - claim.now_ms) / 1000
        return calls

    def _take(self, call: Call, outcome: WireOutcome) -> None:
        del self._unrecorded[call.offset]
        self.bundle.add(call.offset, outcome)
        if outcome.error_code is None:
            self.succeeded += 1
        else:
            self.failed += 1
        self._recorder.changed(self, len(outcome.body))
        self._end_if_over()

    def _wait(self, call: Call, delay_s: float) -> None:
        now_s = self._loop.time()
        if self._open and call.deadline_s is not None and now_s >= call.deadline_s:
            self.refuse(call, outcome_too_late(call))
        elif not self._open or now_s + delay_s >= self._closes_s:
            self._due_s[call.offset] = now_s + delay_s
        elif delay_s < 0.001:  # what uvloop rounds to zero becomes a handle that does not know its time
            self._again(call)
        else:
            if call.attempts:
                self._lane.will_retry(call, wanted=True)
            self._backoffs[call.offset] = self._loop.call_later(delay_s, self._back_in_line, call)

    def _back_in_line(self, call: Call) -> None:
        del self._backoffs[call.offset]
        self._again(call)
        self._end_if_over()

    def _again(self, call: Call) -> None:
        """Let a call stand in line again, or wait for the retry budget."""
        wait_s = self._lane.retry_wait_s(call)
        if wait_s:
            self._wait(call, wait_s)
        else:
            self._lane.add_first(call)

    def _watch_deadlines(self, now_s: float) -> None:
        """Check again at the next deadline after ``now_s``; a lane that starts no calls checks none."""
        ahead = [
            call.deadline_s
            for call in self._unrecorded.values()
            if call.deadline_s is not None and call.deadline_s > now_s
        ]
        if ahead and not self._ended:
            self._deadline_timer = self._loop.call_at(min(ahead), self._refuse_late)

    def _refuse_late(self) -> None:
        """Refuse what is too late, and see to what will be."""
        now_s = self._loop.time()
        for offset, call in list(self._unrecorded.items()):
            if not self._open:
                return
            if call.deadline_s is None or call.deadline_s > now_s or offset in self._in_flight:
                continue
            if (backoff := self._backoffs.pop(offset, None)) is not None:
                backoff.cancel()
                self._lane.will_retry(call, wanted=False)
            self._due_s.pop(offset, None)
            self.refuse(call, outcome_too_late(call))
        self._watch_deadlines(
            now_s
        )  # as of the look above: a deadline between two readings of the clock would be missed

    def _attempt_ended(self, call: Call, *, made: bool = True) -> None:
        self._in_flight.discard(call.offset)
        self.bundle.calls += made

    def _end_if_over(self) -> None:
        if self._in_flight or self._ended or (self._open and not self._only_waits()):
            return
        self._ended = True
        regular = self._open or (self._out_of_time and self._stage is not Stage.ONE_BY_ONE)
        self.close()
        self._stop_clock()
        if not self._loaded:
            self._recorder.finished(self, Finish.as_it_was(self.claim))
            return
        waits_only = len(self._due_s) == len(self._unrecorded)
        next_s = min(self._due_s.values()) if self._due_s and waits_only else 0.0
        self._recorder.finished(
            self,
            Finish(
                delay_ms=int(max(0.0, next_s - self._loop.time()) * 1000),
                attempts={offset: spent for offset, call in self._unrecorded.items() if (spent := _spent(call))},
                not_before_ms={offset: self._redis_ms(due_s) for offset, due_s in self._due_s.items()},
                spared={offset: call.spared for offset, call in self._unrecorded.items() if call.spared},
                throttles=self._throttles(),
                deaths=0 if regular and self._tried else self.claim.deaths,
            ),
        )

    def _throttles(self) -> dict[int, Throttles]:
        """Return the refusals of what is left, for whoever claims the chunk next."""
        return {
            offset: Throttles(call.throttles, self._redis_ms(call.throttled_since_s))
            for offset, call in self._unrecorded.items()
            if call.throttles
        }

    def _only_waits(self) -> bool:
        """Say whether nothing is left, or only what waits longer for a retry than a chunk is held for that."""
        if len(self._due_s) + len(self._backoffs) < len(self._unrecorded):
            return False
        if not self._backoffs:
            return True
        soonest_s = min(timer.when() for timer in self._backoffs.values())
        return soonest_s - self._loop.time() > HELD_FOR_BACKOFF_S

    def _redis_ms(self, time_s: float) -> int:
        """Return the time on the clock of Redis for one on the event loop's."""
        return self.claim.now_ms + round((time_s - self._began_s) * 1000)


def _spent(call: Call) -> int:
    """Return the attempts that a call has spent when it is given back.

    Redirects that it followed count as one: it starts again from its own URL, and must not do so forever.
    """
    return call.attempts + (call.redirects > 0)
