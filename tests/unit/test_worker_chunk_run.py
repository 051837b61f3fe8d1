"""What a chunk that a worker holds does with its calls, and what it gives back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

import pytest
from virtual_time import VirtualLoop

from callmill.jobs.trace_context import TraceContext
from callmill.jobs.traffic import NORMAL
from callmill.jobs.wire import Chunk, WireJob, WireOutcome, assigned_id
from callmill.ledger import Bundle, ChunkRef, Claim, Finish, Throttles
from callmill.workers.call import Call, Postponed
from callmill.workers.chunk_run import BUDGET_S, HELD_FOR_BACKOFF_S, ChunkRun
from callmill.workers.outcomes import outcome_too_late

NOW_MS = 1_000_000
LEASE_S = 600.0
TRACE = TraceContext("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")


class NotingLane:
    """A lane that starts nothing, and notes what it is told."""

    def __init__(self) -> None:
        self.line: list[Call] = []
        self.first = 0
        self.forgot = 0
        self.wanted: set[int] = set()
        self.budget_waits_s: list[float] = []

    def add(self, _owner: Any, calls: Sequence[Call], *, first: int = 0) -> None:
        """Take calls in."""
        self.line += calls
        self.first = first

    def add_first(self, call: Call) -> None:
        """Take a call in that has waited already."""
        self.line.insert(0, call)

    def forget(self, _owner: Any) -> None:
        """Drop what waits."""
        self.forgot += 1
        self.line.clear()

    def will_retry(self, call: Call, *, wanted: bool) -> None:
        """Take note of the offset."""
        (self.wanted.add if wanted else self.wanted.remove)(call.offset)

    def retry_wait_s(self, _call: Call) -> float:
        """Let calls wait for the retry budget as the test says, then go on."""
        return self.budget_waits_s.pop(0) if self.budget_waits_s else 0.0

    @property
    def offsets(self) -> list[int]:
        """Offsets of the calls in line."""
        return [call.offset for call in self.line]


class Held:
    """A chunk in a worker's hands."""

    def __init__(self, *, jobs: int = 1, deadlines_ms: Sequence[int | None] = (), **claimed: Any) -> None:
        self.lane = NotingLane()
        self.finishes: list[Finish] = []
        self.told_bytes: list[int] = []
        self.began_s = now_s()
        claim = Claim(
            **{
                "ref": ChunkRef("b", 0, "api"), "fence": 1, "payload": b"", "recorded": frozenset(), "attempts": {},
                "not_before_ms": {}, "claims": 0, "now_ms": NOW_MS, "count": jobs, **claimed,
            }
        )  # fmt: skip
        deadlines = [*deadlines_ms, *[None] * (jobs - len(deadlines_ms))]
        chunk = Chunk("api", 40, [WireJob("GET", "/", deadline_ms=ms) for ms in deadlines], trace=TRACE)
        lane, recorder, ends_s = cast("Any", self.lane), cast("Any", self), now_s() + LEASE_S
        self.run = ChunkRun(claim, chunk, lane, recorder, traffic=NORMAL, lease_ends_s=ends_s)

    def lease_lasts(self, seconds: float) -> None:
        """Renew the lease: it ends in so many seconds."""
        self.run.renewed(now_s() + seconds)

    def changed(self, _run: ChunkRun, size_bytes: int = 0) -> None:
        """Keep by how many bytes there is more to record."""
        self.told_bytes.append(size_bytes)

    def finished(self, _run: ChunkRun, finish: Finish) -> None:
        """Keep how it was given up."""
        self.finishes.append(finish)

    def begun(self) -> Held:
        """Begin."""
        self.run.begin()
        return self

    def start(self) -> Call:
        """Start the call that is next."""
        call = self.lane.line.pop(0)
        assert self.run.may_start(call, now_s())
        self.run.started(call)
        return call

    def end(self, code: str | None = None, body: bytes = b"", latency_us: int = 1000) -> None:
        """Make the call that is next; it has an outcome."""
        call = self.start()
        outcome = WireOutcome(call.index, None, 200, body, {}, code, code, call.attempts + 1, 0, latency_us)
        self.run.record(call, outcome)

    def postpone(self, delay_s: float = 0.0, *, spends_attempt: bool = True, throttled: bool = False) -> Call:
        """Make the call that is next; it wants another attempt."""
        call = self.start()
        call.attempts += spends_attempt
        self.run.postpone(call, Postponed("http_500", "", delay_s, spends_attempt=spends_attempt, throttled=throttled))
        return call

    @property
    def since_s(self) -> float:
        """Seconds since it was claimed."""
        return now_s() - self.began_s

    @property
    def bundle(self) -> Bundle:
        """What there is to record."""
        return self.run.bundle

    @property
    def finish(self) -> Finish:
        """How it was given up."""
        (finish,) = self.finishes
        return finish


def now_s() -> float:
    """Return the loop's time."""
    return asyncio.get_running_loop().time()


def play(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario on a clock that jumps to what happens next."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(scenario())


def timers() -> int:
    """Return how many timers the loop still has."""
    loop: Any = asyncio.get_running_loop()
    return sum(not timer.cancelled() for timer in loop._scheduled)


def test_an_end_that_is_recorded_late_changes_nothing():
    """The ledger's answer for a chunk that was abandoned meanwhile comes too late, and harms nobody."""

    async def scenario() -> None:
        held = Held()
        held.run.abandon()
        held.run.recorded()
        assert held.run.over.done()

    asyncio.run(scenario())


def test_no_call_starts_once_the_lease_has_ended():
    """Until its lease ends a chunk lets calls start; from then on none, and it is given back, whatever comes later."""

    async def scenario() -> None:
        held = Held(jobs=2).begun()
        call = held.lane.line[0]
        assert held.run.may_start(call, now_s() + LEASE_S - 0.001)
        assert not held.finishes
        assert not held.run.may_start(call, now_s() + LEASE_S)
        assert (held.lane.forgot, held.run.put_back, len(held.finishes)) == (1, 2, 1)
        held.lease_lasts(2 * LEASE_S)
        assert not held.run.may_start(call, now_s())

    play(scenario)


def test_a_renewed_lease_lets_calls_go_on():
    """After a renewal calls start until the new end of the lease."""

    async def scenario() -> None:
        held = Held().begun()
        held.lease_lasts(2 * LEASE_S)
        assert held.run.may_start(held.lane.line[0], now_s() + 2 * LEASE_S - 0.001)

    play(scenario)


@pytest.mark.parametrize("earlier", [0, 2])
def test_an_interrupted_attempt_counts(earlier):
    """What the API made of an attempt that was cut off is unknown: it counts as a call, and as an attempt spent."""

    async def scenario() -> None:
        held = Held(attempts={0: earlier} if earlier else {}).begun()
        call = held.start()
        held.run.close()
        assert not held.finishes
        held.run.interrupted(call)
        assert (held.bundle.calls, held.bundle.retries, held.finish.attempts) == (1, 0, {0: earlier + 1})
        assert (held.run.put_back, held.bundle.outcomes) == (1, [])

    play(scenario)


def test_a_chunk_is_given_back_when_its_time_is_over():
    """A chunk is held for its budget and no longer; what is in flight then may end first."""

    async def scenario() -> None:
        held = Held(jobs=3).begun()
        call = held.start()
        await asyncio.sleep(BUDGET_S - 0.01)
        assert held.run.may_start(held.lane.line[0], now_s())
        await asyncio.sleep(0.02)
        assert not held.run.may_start(call, now_s())
        assert (held.lane.line, held.finishes) == ([], [])
        held.run.interrupted(call)
        assert (held.run.put_back, held.finish.delay_ms, held.finish.attempts) == (3, 0, {0: 1})
        assert held.run.held_s == held.since_s

    play(scenario)


def test_a_chunk_that_is_over_is_given_up_once():
    """With the last outcome a chunk ends regularly; its time, a close or an abandon later change nothing of that."""

    async def scenario() -> None:
        held = Held(jobs=2).begun()
        held.end()
        assert not held.finishes
        held.end()
        assert held.finish == Finish()
        assert timers() == 0
        held.run.close()
        await asyncio.sleep(BUDGET_S + 1)
        assert len(held.finishes) == 1

    play(scenario)


def test_a_chunk_that_is_not_ours_any_more_gives_nothing_back():
    """An abandoned chunk is over at once: nothing is given up, no call starts, and no timer is left."""

    async def scenario() -> None:
        held = Held(jobs=3, deadlines_ms=[None, NOW_MS + 5000]).begun()
        held.postpone(1.0)
        call = held.start()
        held.run.abandon()
        held.run.abandon()
        assert held.run.over.done()
        assert timers() == 0
        assert not held.run.may_start(call, now_s())
        held.run.interrupted(call)
        await asyncio.sleep(BUDGET_S + 1)
        assert (held.finishes, held.lane.line, held.lane.wanted, held.bundle.outcomes) == ([], [], set(), [])

    play(scenario)


def test_what_was_spent_is_counted_as_it_happened():
    """Calls, retries, refusals and latencies of a bundle are those of the attempts; a refused job made none."""

    async def scenario() -> None:
        held = Held(jobs=6).begun()
        held.end(body=b"12345", latency_us=1000)
        held.end("http_400", latency_us=3000)
        held.end("throttled", latency_us=8000)
        held.postpone(spends_attempt=True)
        held.postpone(spends_attempt=False, throttled=True)
        refused = held.lane.line.pop()
        held.run.refuse(refused, outcome_too_late(refused))
        bundle = held.bundle
        assert (bundle.calls, bundle.retries, bundle.throttled) == (5, 1, 2)
        assert bundle.latencies_us == [1000, 3000, 8000]
        assert [offset for offset, _ in bundle.outcomes] == [0, 1, 2, refused.offset]
        assert held.told_bytes == [5, 0, 0, 0, 0, 0]
        assert (held.run.succeeded, held.run.failed, held.run.put_back, held.run.p50_ms) == (1, 3, 2, 3.0)
        assert held.run.summary() == "1 ok, 3 failed, 2 put back, p50 3 ms"

    play(scenario)


def test_a_chunk_without_calls_has_no_latency():
    """Before its first call a chunk has no median, and its summary none either."""

    async def scenario() -> None:
        run = Held().begun().run
        assert (run.p50_ms, run.summary()) == (None, "0 ok, 0 failed, 1 put back")

    play(scenario)


def test_a_job_that_has_its_outcome_does_not_start():
    """A job that was refused while it stood in line does not start when its turn comes."""

    async def scenario() -> None:
        held = Held(jobs=2).begun()
        call = held.lane.line.pop()
        held.run.refuse(call, outcome_too_late(call))
        assert not held.run.may_start(call, now_s())
        assert held.run.may_start(held.lane.line[0], now_s())

    play(scenario)


def test_a_retry_waits_its_delay_and_then_goes_first():
    """A call with a delay stands in line again when that is over, announced meanwhile; one without does so at once."""

    async def scenario() -> None:
        held = Held(jobs=3).begun()
        held.postpone(1.5)
        assert (held.lane.offsets, held.lane.wanted) == ([1, 2], {0})
        held.postpone(0.0)
        assert (held.lane.offsets, held.lane.wanted) == ([1, 2], {0})
        await asyncio.sleep(1.49)
        assert held.lane.offsets == [1, 2]
        await asyncio.sleep(0.02)
        assert held.lane.offsets == [0, 1, 2]
        held.run.close()
        assert (held.finish.not_before_ms, held.finish.delay_ms) == ({}, 0)

    play(scenario)


def test_a_retry_waits_for_the_budget_of_retries():
    """Where the retry budget is spent a call asks again later, as often as that takes, and then stands in line."""

    async def scenario() -> None:
        held = Held(jobs=2).begun()
        held.lane.budget_waits_s = [0.5, 1.0]
        held.postpone(0.0)
        await asyncio.sleep(1.49)
        assert held.lane.offsets == [1]
        await asyncio.sleep(0.02)
        assert held.lane.offsets == [0, 1]

    play(scenario)


def test_a_chunk_of_which_all_waits_long_is_given_back_at_once():
    """Whether a retry's own delay is long or the retry budget's, a chunk that has nothing else is not held for it."""

    async def scenario() -> None:
        own, budget = Held().begun(), Held().begun()
        own.postpone(10.0)
        assert (own.finish.delay_ms, own.finish.not_before_ms) == (10_000, {0: NOW_MS + 10_000})
        budget.lane.budget_waits_s = [9.0]
        budget.postpone(1.0)
        await asyncio.sleep(0.99)
        assert not budget.finishes
        await asyncio.sleep(0.02)
        assert budget.finish.not_before_ms == {0: NOW_MS + 10_000}
        assert timers() == 0

    play(scenario)


def test_a_wait_that_spends_no_attempt_is_not_announced_as_a_retry():
    """A call that has spent no attempt takes none of the retry budget beforehand."""

    async def scenario() -> None:
        held = Held(jobs=2).begun()
        held.postpone(1.0, spends_attempt=False)
        assert held.lane.wanted == set()

    play(scenario)


@pytest.mark.parametrize(("delay_s", "kept"), [(HELD_FOR_BACKOFF_S - 0.1, True), (HELD_FOR_BACKOFF_S + 0.1, False)])
def test_a_chunk_is_held_for_a_short_wait_only(delay_s, kept):
    """When all that is left waits, a chunk is held if the soonest retry is near, and else given back until then."""

    async def scenario() -> None:
        held = Held(jobs=3).begun()
        held.postpone(delay_s)
        held.postpone(delay_s + 5)
        assert not held.finishes
        held.end()
        assert bool(held.finishes) is not kept
        if kept:
            held.run.close()
        finish = held.finish
        due_ms = {0: NOW_MS + round(delay_s * 1000), 1: NOW_MS + round(delay_s * 1000) + 5000}
        assert (finish.not_before_ms, finish.attempts) == (due_ms, {0: 1, 1: 1})
        assert finish.delay_ms == pytest.approx(delay_s * 1000, abs=1)
        assert held.lane.wanted == set()

    play(scenario)


def test_a_retry_beyond_the_budget_goes_back_with_its_time():
    """A retry that is due when the chunk's time is over waits in the ledger; the others go on here."""

    async def scenario() -> None:
        held = Held(jobs=2).begun()
        await asyncio.sleep(BUDGET_S - 10)
        held.postpone(10.0)
        assert held.lane.wanted == set()
        assert not held.finishes
        await asyncio.sleep(5)
        held.end()
        assert (held.finish.not_before_ms, held.finish.delay_ms) == ({0: NOW_MS + 30_000}, 5000)

    play(scenario)


@pytest.mark.parametrize(("survived", "deaths"), [(True, 0), (False, 2)])
def test_an_attempt_that_failed_was_survived(survived, deaths):
    """A chunk that gave up by itself is harmless once an attempt of it has ended; one cut off shows nothing."""

    async def scenario() -> None:
        held = Held(deaths=2).begun()
        if survived:
            held.postpone(20.0)
        else:
            call = held.start()
            await asyncio.sleep(BUDGET_S)
            held.run.interrupted(call)
        assert held.finish.deaths == deaths

    play(scenario)


def test_what_could_run_now_goes_back_without_delay():
    """A remainder of which something does not wait is due at once."""

    async def scenario() -> None:
        held = Held(jobs=2).begun()
        held.postpone(20.0)
        held.run.close()
        assert (held.finish.delay_ms, held.finish.not_before_ms) == (0, {0: NOW_MS + 20_000})

    play(scenario)


def test_a_retry_of_a_closed_chunk_goes_back_with_its_time():
    """A call that comes back for a retry after the chunk was closed is given back, and due when the retry is."""

    async def scenario() -> None:
        held = Held(jobs=1).begun()
        call = held.start()
        held.run.close()
        call.attempts += 1
        held.run.postpone(call, Postponed("http_500", "", 4.0))
        finish = held.finish
        assert (finish.delay_ms, finish.not_before_ms, finish.attempts) == (4000, {0: NOW_MS + 4000}, {0: 1})

    play(scenario)


def test_a_chunk_that_is_claimed_again_waits_as_it_was_told():
    """Jobs wait in the worker until the time that the ledger has for them, tried jobs for the retry budget as well."""

    async def scenario() -> None:
        held = Held(jobs=4, claims=1, attempts={1: 2, 2: 1}, not_before_ms={0: NOW_MS + 1500, 1: NOW_MS + 1000})
        held.lane.budget_waits_s = [0.25]
        held.run.begin()
        assert (held.lane.offsets, held.lane.first, held.lane.wanted) == ([3], 1, {1, 2})
        await asyncio.sleep(0.26)
        assert held.lane.offsets == [2, 3]
        await asyncio.sleep(0.75)
        assert held.lane.offsets == [1, 2, 3]
        await asyncio.sleep(0.5)
        assert held.lane.offsets == [0, 1, 2, 3]
        assert [call.attempts for call in held.lane.line] == [0, 2, 1, 0]
        assert [call.trace for call in held.lane.line] == [TRACE] * 4

    play(scenario)


@pytest.mark.parametrize(
    ("claimed", "finish"),
    [
        (
            {"attempts": {0: 1}, "not_before_ms": {0: NOW_MS + 9000}},
            Finish(delay_ms=9000, attempts={0: 1}, not_before_ms={0: NOW_MS + 9000}, deaths=1),
        ),
        ({"recorded": frozenset({0})}, Finish(deaths=1)),
    ],
)
def test_a_chunk_with_nothing_to_do_now_is_given_back_at_once(claimed, finish):
    """A chunk of which nothing is left, or all must wait for long, is not held for its time."""

    async def scenario() -> None:
        held = Held(jobs=1, claims=1, deaths=1, **claimed).begun()
        assert held.finish == finish
        assert timers() == 0

    play(scenario)


def test_a_deadline_ahead_keeps_no_call_from_its_retry():
    """A call whose deadline is still to come stands in line again, at once or after its delay."""

    async def scenario() -> None:
        held = Held(jobs=2, deadlines_ms=[NOW_MS + 5000, NOW_MS + 5000]).begun()
        held.postpone(1.0)
        held.postpone()
        assert (held.lane.offsets, held.run.failed) == ([1], 0)
        await asyncio.sleep(1.01)
        assert (held.lane.offsets, held.run.failed) == ([0, 1], 0)

    play(scenario)


def test_times_long_past_hold_nobody():
    """A job that was due before its chunk was claimed stands in line at once."""

    async def scenario() -> None:
        held = Held(jobs=1, claims=1, attempts={0: 1}, not_before_ms={0: NOW_MS - 5000}).begun()
        assert held.lane.offsets == [0]

    play(scenario)


def test_new_chunks_do_not_overtake():
    """The jobs of a chunk that nobody held before stand behind those that wait."""

    async def scenario() -> None:
        held = Held(jobs=3).begun()
        assert (held.lane.offsets, held.lane.first) == ([0, 1, 2], 0)

    play(scenario)


def test_what_is_known_of_jobs_survives_a_chunk_that_was_not_tried():
    """Attempts, spared failures and refusals of the jobs that are left go back as they were claimed."""

    async def scenario() -> None:
        known: dict[str, Any] = {
            "attempts": {1: 2},
            "spared": {1: 3, 2: 1},
            "throttles": {2: Throttles(4, NOW_MS - 700)},
        }
        held = Held(jobs=3, claims=2, recorded=frozenset({0}), deaths=2, **known).begun()
        assert sorted(held.lane.offsets) == [1, 2]
        assert {call.offset: (call.index, call.key) for call in held.lane.line} == {
            offset: (40 + offset, assigned_id("b", 40 + offset)) for offset in (1, 2)
        }
        held.run.close()
        finish = held.finish
        assert (finish.attempts, finish.spared, finish.throttles) == tuple(known.values())
        assert (finish.deaths, finish.delay_ms) == (2, 0)

    play(scenario)


def test_redirects_that_were_followed_count_as_one_attempt_when_given_back():
    """A call that is given back between two redirects has spent an attempt, however many it followed."""

    async def scenario() -> None:
        held = Held(jobs=3).begun()
        held.lane.line[0].redirects, held.lane.line[1].redirects = 1, 3
        held.run.close()
        assert held.finish.attempts == {0: 1, 1: 1}

    play(scenario)


def test_a_deadline_ends_what_waits_for_a_retry_and_nothing_in_flight():
    """A deadline ends a wait for a retry as well; an attempt under way may end, but is followed by no other."""

    async def scenario() -> None:
        held = Held(jobs=3, deadlines_ms=[NOW_MS + 1000, NOW_MS + 1000]).begun()
        held.postpone(5.0)
        call = held.start()
        await asyncio.sleep(1.01)
        assert [(offset, outcome.error_code) for offset, outcome in held.bundle.outcomes] == [(0, "deadline")]
        assert held.lane.wanted == set()
        assert timers() == 1  # that of the chunk's time
        held.run.postpone(call, Postponed("http_500", ""))
        assert [(offset, outcome.error_code) for offset, outcome in held.bundle.outcomes][1:] == [(1, "deadline")]
        await asyncio.sleep(10)
        assert (held.lane.offsets, held.run.put_back) == ([2], 1)

    play(scenario)


def test_a_deadline_within_the_time_of_the_batch_holds():
    """Of a job's deadline and its batch's, the earlier one counts."""

    async def scenario() -> None:
        held = Held(jobs=2, deadlines_ms=[NOW_MS + 1000, NOW_MS + 9000], deadline_ms=NOW_MS + 5000).begun()
        for at_s, failed in ((0.99, 0), (1.01, 1), (4.99, 1), (5.01, 2)):
            await asyncio.sleep(at_s - held.since_s)
            assert held.run.failed == failed
        assert held.finish == Finish()

    play(scenario)


def test_deadlines_of_a_closed_chunk_are_the_next_workers():
    """A closed chunk refuses nothing more: what is left goes back as it is."""

    async def scenario() -> None:
        held = Held(jobs=2, deadlines_ms=[None, NOW_MS + 1000]).begun()
        call = held.start()
        held.run.close()
        await asyncio.sleep(2)
        assert held.bundle.outcomes == []
        held.run.interrupted(call)
        assert held.run.put_back == 2

    play(scenario)


def test_a_job_that_waits_for_the_next_worker_can_still_be_too_late():
    """A job whose retry is beyond the chunk's time fails here if its deadline comes first, and does not go back."""

    async def scenario() -> None:
        held = Held(jobs=2, deadlines_ms=[NOW_MS + 1000]).begun()
        held.postpone(BUDGET_S + 10)
        await asyncio.sleep(1.01)
        assert held.run.failed == 1
        held.postpone(BUDGET_S + 20)
        assert (held.finish.not_before_ms, held.finish.attempts) == ({1: NOW_MS + 51_010}, {1: 1})
        assert held.finish.delay_ms == pytest.approx(50_000, abs=1)
        assert timers() == 0

    play(scenario)


def test_a_late_job_of_a_closed_chunk_goes_back():
    """A call that comes back after its deadline fails where the chunk is open; else the next worker sees to it."""

    async def scenario() -> None:
        held = Held(deadlines_ms=[NOW_MS + 1000]).begun()
        call = held.start()
        held.run.close()
        await asyncio.sleep(2)
        held.run.postpone(call, Postponed("http_500", ""))
        assert (held.bundle.outcomes, held.run.put_back, len(held.finishes)) == ([], 1, 1)

    play(scenario)
