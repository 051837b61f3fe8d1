"""How a worker executes the chunks that it has claimed."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from virtual_time import VirtualLoop

from callmill.errors import CallmillError, RedisUnavailableError, UnknownFormatError
from callmill.jobs.chunk_reader import ReadChunk
from callmill.jobs.line import Line
from callmill.jobs.outcome import UNKNOWN_INDEX
from callmill.jobs.traffic import Priority, TrafficClass
from callmill.jobs.wire import Chunk, WireJob, encode_chunk
from callmill.ledger import Bundle, ChunkRef, Claim, Finish, Suspect
from callmill.workers import execution as module
from callmill.workers.call import Call, CallOwner
from callmill.workers.chunk_run import ChunkRun
from callmill.workers.execution import Execution
from callmill.workers.held_chunks import LargeChunks
from callmill.workers.newer_batches import NewerBatches
from callmill.workers.outcomes import outcome_without_answer
from callmill.workers.suspicion import NO_JOB


def nothing(*_: object, **__: object) -> None:
    """Do nothing."""


@pytest.fixture
def idle_lane():
    """A lane that never starts a call."""
    return SimpleNamespace(add=nothing, forget=nothing)


def test_a_chunk_that_is_claimed_again_here_runs_once(idle_lane):
    """Where a lease is lost and the same process claims the chunk again, the first run ends and the second is held."""

    async def scenario() -> None:
        runs: dict[ChunkRef, ChunkRun] = {}
        ended: list[ChunkRun] = []

        def finished(run: ChunkRun, _: object) -> None:
            ended.append(run)
            run.recorded()

        room = SimpleNamespace(taken_in=nothing, filled=nothing, hold=nothing, resume=nothing)
        execution = Execution(
            None, {"api": idle_lane}, SimpleNamespace(finished=finished), room, runs, lease_s=10, newer=NewerBatches()
        )
        ref = ChunkRef("b", 0, "api")
        first = Claim(
            ref=ref, fence=1, payload=encode_chunk(Chunk("api", 0, [WireJob("GET", "/")])), recorded=frozenset(),
            attempts={}, not_before_ms={}, claims=0, now_ms=0, count=1,
        )  # fmt: skip
        again = msgspec.structs.replace(first, fence=2)
        tasks = []
        for claim in (first, again):
            tasks.append(asyncio.ensure_future(execution.execute(claim, Line("api"), time.monotonic())))
            await asyncio.sleep(0)
        assert await tasks[0] == "0 ok, 0 failed, 1 put back"
        assert runs[ref].claim is again
        execution.drain()
        assert await tasks[1] == "0 ok, 0 failed, 1 put back"
        assert (runs, [run.claim for run in ended]) == ({}, [again])

    asyncio.run(scenario())


LINE = Line("api", TrafficClass(Priority.BULK))
LEASE_S = 10.0


class Worker:
    """A worker's parts around an execution, which note what they are told."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.line: list[Call] = []
        self.owners: list[CallOwner] = []
        self.bundles: list[Bundle] = []
        self.trouble: CallmillError | None = None
        self.runs: dict[ChunkRef, ChunkRun] = {}
        this = cast("Any", self)
        self.execution = Execution(
            this,
            {"api": this},
            this,
            this,
            self.runs,
            lease_s=LEASE_S,
            newer=cast("Any", SimpleNamespace(met=self._met)),
        )

    def _met(self, batch_id: str, _why: UnknownFormatError) -> None:
        self.told.append(("newer", batch_id))

    async def _answer(self, *what: Any) -> None:
        await asyncio.sleep(0)
        if self.trouble is not None:
            raise self.trouble
        self.told.append(what)

    async def release(self, claim: Claim, delay_ms: int) -> None:
        """Give a chunk back to the ledger."""
        await self._answer("release", claim.ref.number, delay_ms)

    async def payload(self, claim: Claim) -> bytes:
        """Read what did not come with the claim."""
        await asyncio.sleep(0)
        return claim.payload

    async def note_alone(self, claim: Claim, offset: int | None) -> None:
        """Note what runs alone."""
        await self._answer("alone", claim.ref.number, offset)

    async def commit(self, _claim: Claim, bundle: Bundle, finish: Finish) -> None:
        """Record a bundle."""
        self.bundles.append(bundle)
        await self._answer("commit", finish)

    def add(self, owner: CallOwner, calls: Sequence[Call], *, first: int = 0) -> None:  # noqa: ARG002 - the port's signature
        """Take calls in."""
        self.owners.append(owner)
        self.line += calls

    def forget(self, owner: CallOwner) -> None:
        """Drop what waits of an owner."""
        self.line = [call for call in self.line if call.owner is not owner]

    def changed(self, *_: Any) -> None:
        """Nothing is recorded here."""

    def finished(self, run: ChunkRun, finish: Finish) -> None:
        """Take the end of a chunk."""
        self.told.append(("finished", run.claim.ref.number, finish.deaths))
        run.over.set_result(None)

    def taken_in(self, ref: ChunkRef) -> None:
        """A chunk is in the process's hands."""
        self.told.append(("in", ref.number))

    def filled(self, line: Line) -> None:
        """A chunk's jobs are in line."""
        self.told.append(("filled", line, len(self.line)))

    def hold(self) -> None:
        """Let nobody in."""
        self.told.append("hold")

    def resume(self) -> None:
        """Let chunks in again."""
        self.told.append("resume")

    def claim(self, number: int = 0, *, jobs: int = 2, **fields: Any) -> Claim:
        """Return a claim of a chunk."""
        known: dict[str, Any] = {
            "payload": encode_chunk(Chunk("api", 0, [WireJob("GET", "/")] * jobs)), "recorded": frozenset(),
            "attempts": {}, "not_before_ms": {}, "claims": 0, "now_ms": 0, "count": jobs,
        }  # fmt: skip
        return Claim(ref=ChunkRef("b", number, "api"), fence=1, **{**known, **fields})

    async def execute(self, claim: Claim) -> asyncio.Future[str]:
        """Begin to execute a chunk."""
        task = asyncio.ensure_future(self.execution.execute(claim, LINE, asyncio.get_running_loop().time()))
        await asyncio.sleep(0.1)
        return task

    def end(self) -> int:
        """Let the next call succeed; return its offset."""
        call = self.line.pop(0)
        assert call.owner.may_start(call, asyncio.get_running_loop().time())
        call.owner.started(call)
        call.owner.record(call, outcome_without_answer(call, None, None))
        return call.offset


def play(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario on a clock that jumps to what happens next."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(asyncio.wait_for(scenario(), 3600))


def test_a_chunk_runs_until_its_jobs_have_outcomes():
    """A chunk is taken in, its jobs stand in its line, and it is held until it was given up; then nothing is left."""

    async def scenario() -> None:
        worker = Worker()
        task = await worker.execute(worker.claim())
        assert worker.told == [("in", 0), ("filled", LINE, 2)]
        assert [owner.traffic for owner in worker.owners] == [LINE.traffic]
        assert list(worker.runs) == [ChunkRef("b", 0, "api")]
        worker.end()
        worker.end()
        assert (await task).startswith("2 ok, 0 failed")
        assert (worker.told[2:], worker.runs) == ([("finished", 0, 0)], {})

    play(scenario)


def test_a_lease_runs_from_when_it_was_asked_for():
    """Calls may start until the lease's time after the question has passed, whenever the answer came."""

    async def scenario() -> None:
        worker = Worker()
        task = await worker.execute(worker.claim())
        (run,), now_s = worker.runs.values(), asyncio.get_running_loop().time()
        assert run.may_start(worker.line[0], now_s - 0.1 + LEASE_S - 0.01)
        assert not run.may_start(worker.line[0], now_s - 0.1 + LEASE_S + 0.01)
        await task

    play(scenario)


def test_a_worker_that_ends_begins_nothing():
    """What a draining worker holds or claims goes back at once, with the deaths that it had."""

    async def scenario() -> None:
        worker = Worker()
        before = await worker.execute(worker.claim(0, deaths=1))
        worker.execution.drain()
        assert await before == "0 ok, 0 failed, 2 put back"
        for number, deaths in ((1, 2), (2, 3)):
            assert await (await worker.execute(worker.claim(number, deaths=deaths))) == "0 ok, 0 failed, 2 put back"
        assert [what for what in worker.told if what[0] == "finished"] == [("finished", n, n + 1) for n in range(3)]
        assert (worker.line, worker.runs) == ([], {})
        assert ("alone", 2, None) not in worker.told

    play(scenario)


def test_a_suspected_chunk_runs_alone_and_is_noted_before():
    """A chunk that dying workers held is noted, then begins; meanwhile nothing else runs or gets its turn."""

    async def scenario() -> None:
        worker = Worker()
        task = await worker.execute(worker.claim(0, deaths=3))
        assert worker.told == [("in", 0), "hold", ("alone", 0, None)]
        assert len(worker.line) == 2
        beside = await worker.execute(worker.claim(1))
        assert await beside == "0 ok, 0 failed, 2 put back"
        assert "it must run alone" in await (await worker.execute(worker.claim(2, deaths=4)))
        assert ("release", 2, module._ISOLATED_LATER_MS) in worker.told
        worker.end()
        worker.end()
        assert (await task).startswith("2 ok")
        assert worker.told[-2:] == [("finished", 0, 0), "resume"]

    play(scenario)


def test_a_chunk_that_could_not_be_noted_does_not_begin():
    """Where the ledger does not take the note, nothing of the chunk is called, and it goes back as it was."""

    async def scenario() -> None:
        worker = Worker()
        worker.trouble = RedisUnavailableError("away")
        task = await worker.execute(worker.claim(0, deaths=3))
        assert await task == "0 ok, 0 failed, 2 put back"
        assert (worker.line, worker.told) == ([], [("in", 0), "hold", ("finished", 0, 3), "resume"])

    play(scenario)


def test_a_chunk_that_killed_workers_alone_runs_one_by_one():
    """After a death alone each job is noted before it starts, the suspect first, and no other is out beside it."""

    async def scenario() -> None:
        worker = Worker()
        task = await worker.execute(worker.claim(0, deaths=5, suspect=Suspect(1, 1)))
        ends = []
        while not task.done():
            assert len(worker.line) == 1
            ends.append(worker.end())
            await asyncio.sleep(0.1)
        noted = [what[2] for what in worker.told if what[0] == "alone"]
        assert (ends, noted) == ([1, 0], [1, 0, NO_JOB])

    play(scenario)


def test_a_chunk_is_noted_before_it_is_read(monkeypatch):
    """A chunk that dying workers held is read once all of it is noted; then what is noted is what runs of it."""

    async def scenario() -> None:
        worker = Worker()
        real = module.read_chunk

        def read(payload: bytes, jobs: int) -> ReadChunk:
            worker.told.append("read")
            return real(payload, jobs)

        monkeypatch.setattr(module, "read_chunk", read)
        for claim, noted in (
            (worker.claim(0, deaths=3), [("alone", 0, None), "read"]),
            (worker.claim(1, deaths=3, jobs=1), [("alone", 1, None), "read", ("alone", 1, 0)]),
            (worker.claim(2, deaths=4, suspect=Suspect(None, 1)), [("alone", 2, None), "read", ("alone", 2, NO_JOB)]),
            (worker.claim(3, deaths=5, suspect=Suspect(1, 1)), ["read"]),
        ):
            worker.told = []
            task = await worker.execute(claim)
            assert worker.told[: 2 + len(noted)] == [("in", claim.ref.number), "hold", *noted]
            while not task.done():
                worker.end()
                await asyncio.sleep(0.1)
            await asyncio.sleep(60)  # others have had their turn

    play(scenario)


def test_a_chunk_that_kills_its_readers_is_not_read_again(monkeypatch):
    """After three workers in a row died of reading it alone, every job of a chunk fails, and nobody reads it."""

    async def scenario() -> None:
        worker = Worker()
        monkeypatch.setattr(module, "read_chunk", None)
        claim = worker.claim(0, deaths=6, suspect=Suspect(None, 3), recorded=frozenset({0}))
        assert "kills the worker that reads it: 6 died" in await (await worker.execute(claim))
        (bundle,) = worker.bundles
        assert [(at, outcome.error_code) for at, outcome in bundle.outcomes] == [(1, "poison")]
        assert worker.told == [("commit", Finish())]

    play(scenario)


def test_a_job_that_submit_would_refuse_fails_alone():
    """What is wrong with a job of a chunk that was written without ``submit`` is its outcome; the others are called."""

    async def scenario() -> None:
        worker = Worker()
        jobs = [WireJob("GET", "/"), WireJob("CONNECT", "/"), WireJob("GET", "/", headers={"Host": "evil.example"})]
        task = await worker.execute(worker.claim(jobs=3, payload=encode_chunk(Chunk("api", 0, jobs))))
        (run,) = worker.runs.values()
        assert [(at, outcome.error_code) for at, outcome in run.bundle.outcomes] == [(1, "invalid"), (2, "invalid")]
        assert [outcome.error_message for _, outcome in run.bundle.outcomes] == [
            "method: 'CONNECT' is no call of an API; use another method",
            "headers: 'Host' is set by the transport; leave it out",
        ]
        assert [call.offset for call in worker.line] == [0]
        worker.end()
        assert (await task).startswith("1 ok, 2 failed")

    play(scenario)


def test_a_large_chunk_waits_until_there_is_room_for_it():
    """Beside another large chunk, one for which there is no room goes back; small ones never do."""

    async def scenario() -> None:
        worker = Worker()
        worker.execution._large = LargeChunks(30 * 2**20)
        large = encode_chunk(Chunk("api", 0, [WireJob("POST", "/", body=os.urandom(8 * 2**20))]))
        first, second = (worker.claim(n, jobs=1, payload=large, size_bytes=len(large)) for n in (0, 1))
        task = await worker.execute(first)
        assert "too large beside" in await (await worker.execute(second))
        assert worker.told[-1] == ("release", 1, module._NO_ROOM_MS)
        small = await worker.execute(worker.claim(2))
        for _ in range(3):
            worker.end()
        assert (await task, await small) == ("1 ok, 0 failed, p50 0 ms", "2 ok, 0 failed, p50 0 ms")
        again = await worker.execute(second)
        worker.end()
        assert (await again).startswith("1 ok")

    play(scenario)


def test_a_chunk_of_a_newer_format_is_left_alone():
    """What only a newer Callmill can read is offered again later, and told."""

    async def scenario(monkeypatch: pytest.MonkeyPatch) -> None:
        def newer(*_: Any) -> Any:
            raise UnknownFormatError("newer")

        monkeypatch.setattr(module, "read_chunk", newer)
        worker = Worker()
        assert await (await worker.execute(worker.claim())) == "given back: newer"
        assert worker.told == [("newer", "b"), ("release", 0, module._NEWER_FORMAT_MS)]

    with pytest.MonkeyPatch.context() as monkeypatch:
        play(lambda: scenario(monkeypatch))


def test_jobs_of_a_chunk_that_cannot_be_read_fail():
    """Every unrecorded job of a damaged chunk fails, and the chunk ends; where that is not recorded it is told."""

    async def scenario() -> None:
        worker = Worker()
        claim = worker.claim(7, jobs=3, payload=b"damaged", recorded=frozenset({1}))
        assert (await (await worker.execute(claim))).startswith("2 failed: ")
        assert worker.told == [("commit", Finish())]
        (bundle,) = worker.bundles
        assert [(offset, outcome.id) for offset, outcome in bundle.outcomes] == [(0, "b/7/0"), (2, "b/7/2")]
        for _, outcome in bundle.outcomes:
            assert (outcome.index, outcome.error_code, outcome.status) == (UNKNOWN_INDEX, "corrupt", None)
            assert (outcome.attempts, outcome.started_ms, outcome.latency_us) == (0, 0, 0)
        assert (bundle.calls, bundle.latencies_us) == (0, [])
        worker.trouble = RedisUnavailableError("away")
        assert await (await worker.execute(claim)) == "not recorded: away"

    play(scenario)


@pytest.mark.parametrize("trouble", [None, RedisUnavailableError("away")])
def test_a_bug_does_not_hold_the_lease(trouble):
    """Whatever goes wrong inside, the chunk goes back for a while, or its lease ends by itself, and it is not held."""

    async def scenario() -> None:
        worker = Worker()

        def broken(_line: Line) -> None:
            worker.trouble = trouble
            raise ZeroDivisionError

        worker.filled = broken  # type: ignore[method-assign]
        said = await (await worker.execute(worker.claim()))
        assert said == "given back: a bug of Callmill; please report it"
        given_back = [] if trouble else [("release", 0, module._AFTER_BUG_MS)]
        assert (worker.told, worker.runs, worker.line) == ([("in", 0), *given_back], {}, [])

    play(scenario)
