"""The ledger under any interleaving of producers, workers, clocks and users, against a plain model."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from ledger_model import Held, ModelBatch, ModelChunk, Place

from callmill.config.public_api import ApiAddress, PublicApi
from callmill.config.redis_connections import connect
from callmill.errors import BatchNotFoundError, BatchStateError, StaleLeaseError
from callmill.jobs import Outcome
from callmill.jobs.failure import FailedJob
from callmill.jobs.line import Line
from callmill.jobs.wire import Chunk, WireJob, WireOutcome, decode_outcomes, encode_chunk
from callmill.ledger import FIRST, Batches, Bundle, ChunkRef, Chunks, Claim, ClaimRefused, Finish, LedgerSession, keys
from callmill.ledger.api_bindings import ApiBindings
from callmill.ledger.failure_filter import ALL, FailureFilter
from callmill.ledger.failures import Failures
from callmill.ledger.scripts import script
from callmill.overview.reader import Overview

APIS = ("one", "two")
"""Batches are bound to an API that is called one; what is called two may be any."""

ADDRESSES = tuple(PublicApi(name="one", base_url=f"https://{host}.example").at for host in "ab")
LINES = ("one", "two", *(str(Line("one", identity=at.identity)) for at in ADDRESSES))
LEASE_MS, DELAY_MS, RETENTION_MS = 600_000, 600_000, 600_000
"""Longer than any example takes: time passes only where a rule says so."""

CONTROLS = ("paused", "paused", "paused", "run", "run", "cancelled")
SIZES = st.sampled_from([1, 2, 3, 8, 9])
FINISHED = (Place.GONE, Place.DONE_WITH_FAILURES)
SELDOM = st.integers(0, 9).map(lambda number: number == 7)
LOOKED_AT = 2 + len(keys.BatchKeys("").all())
"""Answers per batch: its stream, what is parked, and the lifetime of each key."""


def payload(api: str, first: int, count: int) -> bytes:
    """Return a chunk of empty jobs."""
    return encode_chunk(Chunk(api, first, [WireJob("GET", "/")] * count))


def outcome(index: int, *, ok: bool) -> WireOutcome:
    """Return a small outcome; every other failure is a 500."""
    status = 200 if ok else 500 if index % 2 else 404
    code = None if ok else f"http_{status}"
    return WireOutcome(index, None, status, b"", {}, code, code, 1, 0, 1000)


class LedgerMachine(RuleBasedStateMachine):
    """Steps that anybody may take at any time."""

    def __init__(self, redis_url: str) -> None:
        super().__init__()
        self.loop = asyncio.Runner()
        self.redis = connect(redis_url)
        self.do(self.redis.flushall())
        session = LedgerSession(self.redis)
        self.ledger, self.failures = Batches(session), Failures(session)
        self.overview = Overview(session, self.redis)
        self.workers = [Chunks(session, worker=name, lease_ms=LEASE_MS) for name in ("a", "b")]
        self.bindings, self.at = ApiBindings(session), ADDRESSES[0]
        self.batches: list[ModelBatch] = []
        self.held: list[Held] = []

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Await something of Redis."""
        return self.loop.run(work)

    def teardown(self) -> None:
        """Close everything."""
        self.do(self.redis.aclose())
        self.loop.close()

    def batch(self, data: st.DataObject, wanted: Callable[[ModelBatch], bool] = lambda _: True) -> ModelBatch:
        """Draw one of the batches."""
        return data.draw(st.sampled_from([batch for batch in self.batches if wanted(batch)]))

    @initialize(held=st.booleans(), sizes=st.lists(SIZES, min_size=1, max_size=3))
    def begin(self, *, held: bool, sizes: list[int]) -> None:
        """Begin with a batch that has something to do."""
        self.create(held=held)
        batch = self.batches[0]
        chunks = []
        for number, count in enumerate(sizes):
            batch.bound["one"] = self.at.identity
            line = batch.line("one")
            chunks.append((line, payload("one", batch.total, count)))
            place = Place.PARKED if held else Place.QUEUED
            batch.chunks.append(ModelChunk(number, "one", batch.total, count, place, line))
        batch.last_add = (0, chunks)
        self.do(self.ledger.add(batch.id, 0, chunks, park=held, bound_to={"one": self.at}))

    @precondition(lambda self: len(self.batches) < 2)
    @rule(held=st.booleans())
    def create(self, *, held: bool) -> None:
        """Open a batch that starts at once, or one that is held back until its seal."""
        batch_id = self.do(self.ledger.create("", retention_ms=RETENTION_MS))
        self.batches.append(ModelBatch(batch_id, held))

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), sizes=st.lists(st.tuples(st.sampled_from(APIS), SIZES), min_size=1, max_size=2))
    def add(self, data: st.DataObject, sizes: list[tuple[str, int]]) -> None:
        """Append chunks; a batch that is not open refuses."""
        batch = self.batch(data)
        first, chunks, made = len(batch.chunks), [], []
        place = Place.PARKED if batch.held or batch.control == "paused" else Place.QUEUED
        index = batch.total
        bound = {"one": batch.bound.get("one", self.at.identity)} if any(api == "one" for api, _ in sizes) else {}
        bound_to = {api: next(at for at in ADDRESSES if at.identity == identity) for api, identity in bound.items()}
        for number, (api, count) in enumerate(sizes, first):
            line = str(Line(api, identity=bound.get(api, "")))
            chunks.append((line, payload(api, index, count)))
            made.append(ModelChunk(number, api, index, count, place, line))
            index += count
        if batch.deleted or batch.sealed or batch.cancelled:
            with pytest.raises(BatchNotFoundError if batch.deleted else BatchStateError):
                self.do(self.ledger.add(batch.id, first, chunks, park=batch.held, bound_to=bound_to))
            return
        batch.chunks += made
        batch.bound |= bound
        batch.last_add = (first, chunks)
        work = self.ledger.add(batch.id, first, chunks, park=batch.held, bound_to=bound_to)
        assert self.do(work) == batch.total

    @precondition(lambda self: any(batch.last_add for batch in self.batches))
    @rule(data=st.data())
    def add_again(self, data: st.DataObject) -> None:
        """Repeat the latest append: its answer was lost on the way."""
        batch = self.batch(data, lambda batch: batch.last_add is not None)
        first, chunks = batch.last_add or (0, [])
        if batch.deleted or batch.sealed or batch.cancelled:
            return
        assert self.do(self.ledger.add(batch.id, first, chunks, park=batch.held)) == batch.total

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), first=st.integers(0, 12))
    def add_in_the_wrong_place(self, data: st.DataObject, first: int) -> None:
        """A second producer on the same batch is refused."""
        batch = self.batch(data)
        open_now = not (batch.deleted or batch.sealed or batch.cancelled)
        if open_now and first not in (len(batch.chunks), len(batch.chunks) - 1):
            with pytest.raises(BatchStateError):
                self.do(self.ledger.add(batch.id, first, [("one", payload("one", 0, 1))], park=batch.held))

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def seal(self, data: st.DataObject) -> None:
        """Close a batch, perhaps for the second time."""
        self.seal_batch(self.batch(data))

    def seal_batch(self, batch: ModelBatch) -> None:
        """Close this batch."""
        if batch.deleted or batch.cancelled:
            with pytest.raises(BatchNotFoundError if batch.deleted else BatchStateError):
                self.do(self.ledger.seal(batch.id))
            return
        assert self.do(self.ledger.seal(batch.id)) == batch.total
        batch.sealed = True
        batch.end_if_over()

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def unpark(self, data: st.DataObject) -> None:
        """Queue what is held back, if it may run by now."""
        self.unpark_batch(self.batch(data))

    def unpark_batch(self, batch: ModelBatch) -> None:
        """Queue what this batch holds back."""
        may_run = not batch.deleted and batch.control == "run" and (batch.sealed or not batch.held)
        expected = batch.unpark() if may_run else set()
        assert {ref.member for ref in self.do(self.ledger.unpark(batch.id))} == expected

    @rule(at=st.sampled_from(ADDRESSES))
    def move(self, at: ApiAddress) -> None:
        """What is called one is somewhere else now: what waits is bound to it, wherever it was before."""
        self.at = at
        refs = self.do(self.bindings.move("one", at))
        for batch in self.batches:
            batch.bind("one", at.identity)
        assert {ref.member for ref in refs} == set[str]().union(*(batch.follow() for batch in self.batches))

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), at=st.sampled_from(ADDRESSES))
    def move_cut_off(self, data: st.DataObject, at: ApiAddress) -> None:
        """Who moves a batch dies when it is bound: its chunks are where they were."""
        batch = self.batch(data, lambda batch: "one" in batch.bound)
        if not batch.ended:
            self.do(self.bindings.bind(batch.id, "one", at))
            batch.bind("one", at.identity)

    @rule()
    def go_on_moving(self) -> None:
        """Somebody carries through what was cut off."""
        for batch_id in self.do(self.bindings.moving()):
            refs = self.do(self.bindings.follow(batch_id))
            (batch,) = [batch for batch in self.batches if batch.id == batch_id]
            assert {ref.member for ref in refs} == batch.follow()
        assert not any(batch.follow() for batch in self.batches)

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), control=st.sampled_from(CONTROLS))
    def control(self, data: st.DataObject, control: str) -> None:
        """Pause, resume or cancel."""
        batch = self.batch(data)
        if batch.deleted:
            with pytest.raises(BatchNotFoundError):
                self.do(self.ledger.control(batch.id, control))
            return
        again = batch.cancelled and control == "cancelled"
        changes = not batch.ended and not batch.cancelled
        assert self.do(self.ledger.control(batch.id, control)) == (changes or again)
        if changes and control == "cancelled":
            batch.cancel()
        elif changes:
            batch.control = control

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), text=st.sampled_from(["", "status=404", "status=5xx"]))
    def retry_failed(self, data: st.DataObject, text: str) -> None:
        """Run failed jobs again, or those of one status, wherever their chunks are; also of a batch that ended."""
        batch = self.batch(data)
        where = FailureFilter(text)
        if batch.deleted or batch.cancelled:
            with pytest.raises(BatchNotFoundError if batch.deleted else BatchStateError):
                self.do(self.ledger.retry_failed(batch.id, where))
            return
        jobs, refs = self.do(self.ledger.retry_failed(batch.id, where))
        wanted = batch.retry_failed(lambda chunk, at: not where or (chunk.first + at) % 2 == ("5" in text))
        assert (jobs, {ref.member for ref in refs}) == wanted

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def list_failures(self, data: st.DataObject) -> None:
        """Every failed job is listed once, with each of its failures, and what was run again apart from them."""
        batch = self.batch(data)
        jobs, retried = self.do(self.listed(batch.id))
        times = {chunk.first + at: n for chunk in batch.chunks for at, n in chunk.failures.items()}
        failed = {chunk.first + at for chunk in batch.chunks for at in chunk.failed}
        if batch.deleted:
            failed, times = set(), {}
        assert [len(jobs), len(retried)] == [len(failed), len(times) - len(failed)]
        assert {job.index for job in jobs} == failed
        assert {job.index: len(job.failures) for job in [*jobs, *retried]} == {
            at: min(n, 10) for at, n in times.items()
        }

    @precondition(lambda self: any(batch.ended and not batch.deleted for batch in self.batches))
    @rule(data=st.data())
    def read_outcomes(self, data: st.DataObject) -> None:
        """A reader of a batch that is over gets the newest outcome of each job and no other, from any cursor on."""
        self.check_reading(data, self.batch(data, lambda batch: batch.ended and not batch.deleted))

    def check_reading(self, data: st.DataObject, batch: ModelBatch) -> None:
        """Read a batch that is over, all of it and from a cursor on."""
        outcomes = self.do(self.read(batch.id, FIRST))
        assert [(item.index, item.ok) for item in outcomes] == batch.newest
        if not batch.cancelled:
            assert len(outcomes) == batch.total
        if outcomes:
            known = data.draw(st.integers(1, len(outcomes)))
            assert self.do(self.read(batch.id, outcomes[known - 1].cursor)) == outcomes[known:]

    async def read(self, batch_id: str, after: str) -> list[Outcome]:
        """Return what a reader gets after a cursor."""
        return [item async for bundle in self.ledger.outcomes(batch_id, after) for item in bundle]

    @precondition(lambda self: any(not batch.deleted for batch in self.batches))
    @rule(data=st.data())
    def view(self, data: st.DataObject) -> None:
        """The errors of a batch are those of its failed jobs, and its history sums up to its counters."""
        batch = self.batch(data, lambda batch: not batch.deleted)
        view = self.do(self.overview.batch(batch.id))
        failed = [chunk.first + at for chunk in batch.chunks for at in chunk.failed]
        assert {error.cause: error.jobs for error in view.errors} == Counter(
            "http_500" if index % 2 else "http_404" for index in failed
        )
        points = view.history
        sums = [sum(point.succeeded for point in points), sum(point.failed for point in points)]
        assert [*sums, sum(point.calls for point in points)] == [batch.succeeded, batch.failed, batch.calls]
        assert 1 <= len(points) <= 240
        assert len(view.slowest) == min(10, len({index for index, _ in batch.stream}))

    @precondition(lambda self: any(not batch.ended and not batch.deleted for batch in self.batches))
    @rule(data=st.data(), seconds=st.sampled_from([1, 100, 10_000]))
    def time_goes_by(self, data: st.DataObject, seconds: int) -> None:
        """A batch becomes older."""
        batch = self.batch(data, lambda batch: not batch.ended and not batch.deleted)
        names = keys.BatchKeys(batch.id)
        self.do(self.redis.hincrby(names.meta, "created_ms", -seconds * 1000))
        self.do(self.redis.delete(names.rate))

    async def listed(self, batch_id: str) -> tuple[list[FailedJob], list[FailedJob]]:
        """Return the jobs that failed, and those that did so before they were run again."""
        jobs = [job async for page in self.failures.jobs(batch_id, ALL) for job in page]
        return jobs, [job async for page in self.failures.retried(batch_id, ALL) for job in page]

    @precondition(lambda self: any(not batch.deleted for batch in self.batches))
    @rule(data=st.data(), sure=SELDOM)
    def delete(self, data: st.DataObject, *, sure: bool) -> None:
        """Remove a batch, whatever happens to it."""
        batch = self.batch(data, lambda batch: not batch.deleted)
        if sure:
            self.do(self.ledger.delete(batch.id))
            batch.deleted = True

    @precondition(lambda self: any(batch.chunks for batch in self.batches))
    @rule(data=st.data())
    def claim_what_is_over(self, data: st.DataObject) -> None:
        """Follow a hint to a chunk that needs nobody any more."""
        batch = self.batch(data, lambda batch: bool(batch.chunks))
        for chunk in batch.chunks:
            if chunk.place in FINISHED or batch.deleted or batch.cancelled:
                answer = self.do(self.workers[0].claim(ChunkRef(batch.id, chunk.number, chunk.line)))
                assert answer == ClaimRefused.GONE

    @precondition(lambda self: any(batch.chunks for batch in self.batches))
    @rule(data=st.data(), worker=st.integers(0, 1))
    def claim(self, data: st.DataObject, worker: int) -> None:
        """Follow a hint: true, late, or doubled."""
        batch = self.batch(data, lambda batch: bool(batch.chunks))
        unfinished = [chunk for chunk in batch.chunks if chunk.place not in FINISHED]
        self.claim_chunk(batch, data.draw(st.sampled_from(unfinished or batch.chunks)), worker)

    @precondition(lambda self: any(batch.bound and batch.chunks for batch in self.batches))
    @rule(data=st.data(), worker=st.integers(0, 1), at=st.sampled_from(ADDRESSES))
    def claim_in_any_line(self, data: st.DataObject, worker: int, at: ApiAddress) -> None:
        """Follow a hint of another time: one of any line in which the chunk waited, or may wait."""
        batch = self.batch(data, lambda batch: any(chunk.api in batch.bound for chunk in batch.chunks))
        bound = [chunk for chunk in batch.chunks if chunk.api in batch.bound]
        chunk = data.draw(st.sampled_from([chunk for chunk in bound if chunk.place not in FINISHED] or bound))
        line = str(Line(chunk.api, identity=at.identity))
        if line in {chunk.line, batch.line(chunk.api)} | chunk.waited_in:
            self.claim_chunk(batch, chunk, worker, line)

    def claim_chunk(self, batch: ModelBatch, chunk: ModelChunk, worker: int, line: str = "") -> Held | None:
        """Claim a chunk as a worker, if the model says that it can be had; by a hint of its line, or of another one."""
        line = line or chunk.line
        answer = self.do(self.workers[worker].claim(ChunkRef(batch.id, chunk.number, line)))
        refused = self.refusal(batch, chunk, line)
        if refused is not None:
            assert answer == refused
            return None
        assert isinstance(answer, Claim)
        assert answer.fence > chunk.fence
        assert answer.claims == chunk.claims
        chunk.place, chunk.due, chunk.fence, chunk.claims = Place.LEASED, False, answer.fence, chunk.claims + 1
        chunk.line = line
        assert answer.recorded == chunk.recorded
        assert (answer.count, answer.deaths, answer.suspect) == (chunk.count, chunk.deaths, chunk.suspect)
        assert {at: n for at, n in answer.attempts.items() if at in chunk.unrecorded} == {
            at: n for at, n in chunk.attempts.items() if at in chunk.unrecorded
        }
        self.held.append(Held(batch, chunk, answer))
        return self.held[-1]

    @staticmethod
    def refusal(batch: ModelBatch, chunk: ModelChunk, line: str) -> ClaimRefused | None:
        """Return why a claim must be refused, after what the refusal itself changes."""
        if batch.deleted or batch.cancelled or chunk.place in FINISHED:
            return ClaimRefused.GONE
        if chunk.place is Place.LEASED and (not chunk.due or chunk.line != line):
            return ClaimRefused.LEASED
        if chunk.place is Place.WAITING and not chunk.due:
            return ClaimRefused.WAITING
        if line != batch.line(chunk.api):
            chunk.line = batch.line(chunk.api) if chunk.place is Place.QUEUED else chunk.line
            return ClaimRefused.MOVED
        return LedgerMachine.refusal_there(batch, chunk, line)

    @staticmethod
    def refusal_there(batch: ModelBatch, chunk: ModelChunk, line: str) -> ClaimRefused | None:
        """Return why a claim must be refused in the line to which the chunk is bound."""
        chunk.line = line
        if chunk.place is Place.LEASED:
            chunk.die()
        if batch.control == "paused":
            batch.give_up(chunk)
            return ClaimRefused.PAUSED
        chunk.open_wanted()
        batch.note_superseded()
        if not chunk.unrecorded:
            batch.give_up(chunk)
            return ClaimRefused.GONE
        return None

    @precondition(lambda self: self.held)
    @rule(
        data=st.data(),
        failing=st.frozensets(st.integers(0, 9)),
        finish=st.sampled_from([None, Finish(), Finish(delay_ms=DELAY_MS), Finish(deaths=1)]),
        share=st.sampled_from(["all", "all", "some", "some, recorded ones too"]),
        calls=st.integers(0, 5),
    )
    def commit(
        self, data: st.DataObject, failing: frozenset[int], finish: Finish | None, share: str, calls: int
    ) -> None:
        """Record some jobs, perhaps some that stand recorded already, and perhaps give the chunk up."""
        held = data.draw(st.sampled_from([held for held in self.held if held.holds] or self.held))
        chunk = held.chunk
        candidates = range(chunk.count) if "too" in share else sorted(chunk.unrecorded)
        offsets = list(candidates)
        if "some" in share and offsets:
            offsets = sorted(data.draw(st.sets(st.sampled_from(offsets))))
        self.commit_jobs(held, offsets, failing, finish, calls)

    @precondition(lambda self: any(batch.members(Place.QUEUED) for batch in self.batches))
    @rule(failing=st.frozensets(st.integers(0, 9)), gives_up=st.booleans())
    def work_through(self, *, failing: frozenset[int], gives_up: bool) -> None:
        """A worker does all that is queued; it may die between recording the last job and giving the chunk up."""
        for batch in self.batches:
            for chunk in [chunk for chunk in batch.chunks if chunk.place is Place.QUEUED and not batch.deleted]:
                held = self.claim_chunk(batch, chunk, 0)
                if held is not None:
                    self.commit_jobs(held, sorted(chunk.unrecorded), failing, Finish() if gives_up else None, 1)

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), failing=st.frozensets(st.integers(0, 9)), retries=st.integers(0, 2))
    def run_to_the_end(self, data: st.DataObject, failing: frozenset[int], retries: int) -> None:
        """Whatever happened before: a producer that seals and one healthy worker bring a live batch to its end.

        What failed may run again, and fail again.
        """
        batch = self.batch(data)
        if batch.deleted or batch.cancelled:
            return
        if not batch.ended:
            self.do(self.ledger.control(batch.id, "run"))
            batch.control = "run"
        self.seal_batch(batch)
        self.unpark_batch(batch)
        for chunk in batch.chunks:
            if chunk.place in (Place.LEASED, Place.WAITING):
                self.make_due(batch, chunk)
        self.requeue_due()
        self.go_on_moving()
        self.work_through(failing=failing, gives_up=True)
        assert batch.ended
        for _ in range(retries):
            self.do(self.ledger.retry_failed(batch.id))
            batch.retry_failed(lambda _, __: True)
            self.work_through(failing=failing, gives_up=True)
            self.check_reading(data, batch)

    def commit_jobs(
        self, held: Held, offsets: list[int], failing: frozenset[int], finish: Finish | None, calls: int
    ) -> None:
        """Commit outcomes for these jobs, and compare what comes of it."""
        batch, chunk = held.batch, held.chunk
        if finish is not None:
            left = chunk.unrecorded - set(offsets)
            deaths = chunk.deaths if finish.deaths else 0
            finish = Finish(delay_ms=finish.delay_ms, attempts={at: at + 1 for at in left}, deaths=deaths)
        outcomes = [(at, outcome(chunk.first + at, ok=at not in failing)) for at in offsets]
        bundle = Bundle(outcomes=outcomes, calls=calls)
        work = self.workers[0].commit(held.claim, bundle, finish)
        if not held.holds:
            with pytest.raises(StaleLeaseError):
                self.do(work)
            return
        repeated, line = bool(chunk.recorded & set(offsets)), chunk.line
        result = self.do(work)
        new = [at for at in offsets if at not in chunk.recorded]
        batch.calls += 0 if repeated else calls
        batch.stream += [(chunk.first + at, at not in failing) for at in new]
        chunk.recorded |= set(new)
        chunk.failed |= set(new) & failing
        chunk.failures.update(set(new) & failing)
        if finish is not None:
            chunk.attempts = dict(finish.attempts)
            chunk.forgive(finish.deaths)
            batch.give_up(chunk, delayed=finish.delay_ms > 0)
        assert result.proceed == (batch.control == "run")
        assert result.hint_wanted == (chunk.place is Place.QUEUED and chunk.line == line)

    @precondition(lambda self: any(not held.holds for held in self.held))
    @rule(data=st.data())
    def commit_too_late(self, data: st.DataObject) -> None:
        """A worker that lost its lease records nothing."""
        held = data.draw(st.sampled_from([held for held in self.held if not held.holds]))
        bundle = Bundle(outcomes=[(0, outcome(held.chunk.first, ok=True))], calls=1)
        with pytest.raises(StaleLeaseError):
            self.do(self.workers[0].commit(held.claim, bundle, Finish()))

    @precondition(lambda self: self.held)
    @rule(data=st.data(), offset=st.sampled_from([None, 0, 0, 1]))
    def note_alone(self, data: st.DataObject, offset: int | None) -> None:
        """A worker notes what it is about to run alone."""
        held = data.draw(st.sampled_from([held for held in self.held if held.holds] or self.held))
        if not held.holds:
            with pytest.raises(StaleLeaseError):
                self.do(self.workers[0].note_alone(held.claim, offset))
            return
        self.do(self.workers[0].note_alone(held.claim, offset))
        held.chunk.note_alone(offset)

    @precondition(lambda self: self.held)
    @rule()
    def renew(self) -> None:
        """Renew every claim that any worker believes in."""
        names, arguments = self.workers[0].renewal([held.claim for held in self.held])
        answers = self.do(self.redis.eval(script("renew"), len(names), *names, *arguments))
        for held, answer in zip(self.held, answers, strict=True):
            goes_on = held.batch.control == "run" and held.chunk.line == held.batch.line(held.chunk.api)
            assert answer == (0 if not held.holds else 1 if goes_on else 2)
            held.chunk.due = held.chunk.due and not held.holds

    @precondition(lambda self: any(batch.members(Place.LEASED, Place.WAITING) for batch in self.batches))
    @rule(data=st.data())
    def time_passes(self, data: st.DataObject) -> None:
        """A lease ends, or a remainder becomes due."""
        batch = self.batch(data, lambda batch: bool(batch.members(Place.LEASED, Place.WAITING)))
        places = (Place.LEASED, Place.WAITING)
        chunk = data.draw(st.sampled_from([chunk for chunk in batch.chunks if chunk.place in places]))
        self.make_due(batch, chunk)

    def make_due(self, batch: ModelBatch, chunk: ModelChunk) -> None:
        """Let the lease or the delay of this chunk be over."""
        self.do(self.redis.zadd(keys.DUE, {ChunkRef(batch.id, chunk.number, chunk.line).member: 0}, xx=True))
        chunk.due = True

    @rule()
    def requeue_due(self) -> None:
        """The reconciler makes its round."""
        refs = {ref.member for ref in self.do(self.workers[1].requeue_due()).put_back}
        expected = set()
        for batch in self.batches:
            for chunk in [chunk for chunk in batch.chunks if chunk.due and not batch.deleted]:
                line = chunk.line
                if chunk.place is Place.LEASED:
                    chunk.die()
                batch.give_up(chunk)
                if chunk.place is Place.QUEUED and chunk.line == line:
                    expected.add(f"{batch.id}/{chunk.number}/{chunk.line}")
        assert refs == expected

    @rule()
    def lose_the_scripts(self) -> None:
        """Redis forgets every script, as after a restart."""
        self.do(self.redis.script_flush())

    @invariant()
    def ledger_is_the_model(self) -> None:
        """Look at everything that Redis has, in one round trip, and compare."""
        seen = self.do(self.look())
        at_lines, seen = seen[: len(LINES)], seen[len(LINES) :]
        queued = {member.decode() for members in at_lines for member in members}
        numbers = {member.rpartition("/")[0] for member in queued}
        assert sum(map(len, at_lines)) == len(numbers), "a chunk is queued in two lines"
        due = {member.decode() for member in seen[0]}
        for at, batch in enumerate(self.batches):
            entries, parked, *ttls = seen[1 + LOOKED_AT * at : 1 + LOOKED_AT * (at + 1)]
            self.check_stream(batch, entries)
            if batch.deleted:
                assert set(ttls) == {-2}, "a key of a deleted batch is there"
                continue
            self.check_counters(batch)
            assert all(ttl == -2 or (ttl > 0) == batch.ended for ttl in ttls), "keys expire after the end, not before"
            if not batch.cancelled:
                assert {member for member in queued if member.startswith(batch.id)} == batch.members(Place.QUEUED)
                assert {member.decode() for member in parked} == batch.members(Place.PARKED)
                in_due = {member for member in due if member.startswith(batch.id)}
                assert in_due - batch.members(Place.QUEUED) == batch.members(Place.LEASED, Place.WAITING)

    async def look(self) -> list[Any]:
        """Return what the queues, the streams and the lifetimes are."""
        pipeline = self.redis.pipeline(transaction=False)
        for key in (*map(keys.queued, LINES), keys.DUE):
            pipeline.zrange(key, 0, -1)
        for batch in self.batches:
            names = keys.BatchKeys(batch.id)
            pipeline.xrange(names.outcomes)
            pipeline.zrange(names.parked, 0, -1)
            for key in names.all():
                pipeline.pttl(key)
        seen: list[Any] = await pipeline.execute()
        return seen

    def check_counters(self, batch: ModelBatch) -> None:
        """State and every counter of a batch are what happened to it."""
        record = self.do(self.ledger.record(batch.id))
        assert (record.total, record.chunks) == (batch.total, len(batch.chunks))
        assert (record.succeeded, record.failed) == (batch.succeeded, batch.failed)
        assert (record.leased, record.calls) == (batch.leased, batch.calls)
        assert (record.sealed, record.ended) == (batch.sealed, batch.ended)
        assert record.apis == sorted({chunk.api for chunk in batch.chunks})

    @staticmethod
    def check_stream(batch: ModelBatch, entries: list[tuple[bytes, dict[bytes, bytes]]]) -> None:
        """The stream has every outcome once, in the order of recording."""
        bundles = [decode_outcomes(fields[b"b"]) for _, fields in entries if b"b" in fields]
        read = [(item.index, item.error_code is None) for bundle in bundles for item in bundle]
        assert read == ([] if batch.deleted else batch.stream)


def test_ledger_is_its_model(redis_url):
    """Whatever the order of steps, the ledger's counters, stream, queues and leases are those of the plain model."""
    run_state_machine_as_test(
        lambda: LedgerMachine(redis_url),
        settings=settings(
            max_examples=50,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        ),
    )
