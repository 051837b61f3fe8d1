"""Execution: what a worker process does with a chunk that it has claimed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from callmill.errors import CorruptChunkError, OutsideError, UnknownFormatError
from callmill.jobs.line import Line
from callmill.jobs.wire import Chunk, decode_chunk
from callmill.ledger import ChunkRef, Chunks, Claim, Finish
from callmill.workers.chunk_run import ChunkRun, Recorder
from callmill.workers.corrupt_chunk import corrupt_outcomes
from callmill.workers.isolation import Isolation
from callmill.workers.lane import Lane
from callmill.workers.log_fields import of_claim
from callmill.workers.newer_batches import NewerBatches
from callmill.workers.one_by_one import OneByOne
from callmill.workers.room import Room
from callmill.workers.suspicion import Stage, noted_at_first, stage_of

log = logging.getLogger(__name__)

_ISOLATED_LATER_MS = 1_000
"""When a chunk that must run alone is tried again, where another one does."""

_AFTER_BUG_MS = 15_000
_NEWER_FORMAT_MS = 10_000
"""When a chunk that only a newer Callmill can read is offered again."""


class Execution:
    """Runs claimed chunks, or gives them back. Belongs to one event loop.

    Args:
        chunks: The ledger.
        lanes: Where calls are made, by API.
        recorder: Takes outcomes.
        room: Is told when a chunk's jobs are in their line.
        runs: The chunks that the process holds; kept up to date here.
        lease_s: Seconds that a lease lasts from its claim.
        newer: Is told of what only a newer Callmill can read.
    """

    def __init__(
        self,
        chunks: Chunks,
        lanes: Mapping[str, Lane],
        recorder: Recorder,
        room: Room,
        runs: dict[ChunkRef, ChunkRun],
        *,
        lease_s: float,
        newer: NewerBatches,
    ) -> None:
        self._chunks = chunks
        self._lanes = lanes
        self._recorder = recorder
        self._room = room
        self._runs = runs
        self._lease_s = lease_s
        self._isolation = Isolation(room, runs.values)
        self._newer = newer
        self._draining = False

    def drain(self) -> None:
        """Close every chunk, also those that are claimed from now on."""
        self._draining = True
        for run in list(self._runs.values()):
            run.close()

    async def execute(self, claim: Claim, line: Line, asked_s: float) -> str:
        """Run a chunk until it is given up; return what came of it, for people.

        ``asked_s``: when its lease was asked for (monotonic, s), from when it runs at least.
        """
        try:
            return await self._run(claim, line, decode_chunk(claim.payload, claim.count), asked_s)
        except UnknownFormatError as error:
            self._newer.met(claim.ref.batch_id, error)
            return await self._give_back(claim, _NEWER_FORMAT_MS, str(error))
        except CorruptChunkError as error:
            return await self._end_corrupt(claim, error)
        except Exception:  # the boundary of a chunk: whatever it is, the lease must not be held for nothing
            log.exception("a chunk met a bug", extra={"action": "chunk_bug", **of_claim(claim)})
            return await self._give_back(claim, _AFTER_BUG_MS, "a bug of Callmill; please report it")

    async def _run(self, claim: Claim, line: Line, chunk: Chunk, asked_s: float) -> str:
        stage, lane = stage_of(claim), self._lanes[line.api]
        if stage.needs_process and not self._isolation.free:
            return await self._give_back(claim, _ISOLATED_LATER_MS, "it must run alone, as another chunk does now")
        caller: Lane | OneByOne = lane
        if stage is Stage.ONE_BY_ONE:
            first = claim.suspect.offset if claim.suspect else None
            caller = OneByOne(lane, line.traffic, partial(self._chunks.note_alone, claim), first=first)
        ends_s = asked_s + self._lease_s
        run = ChunkRun(claim, chunk, caller, self._recorder, traffic=line.traffic, lease_ends_s=ends_s)
        with self._held(run):
            if stage.needs_process:
                await self._run_alone(run, stage)
            else:
                run.begin()
                self._room.taken_in(claim.ref)
                self._room.filled(line)
                if self._draining or self._isolation.taken:
                    run.close()
                await run.over
        summary = run.summary()
        _log_end(run, summary)
        return summary

    @contextmanager
    def _held(self, run: ChunkRun) -> Iterator[None]:
        """Hold the chunk; an earlier run of it ends: its lease was lost, or this claim would not have been granted."""
        ref = run.claim.ref
        if (before := self._runs.get(ref)) is not None:
            before.abandon()
        self._runs[ref] = run
        try:
            yield
        except Exception:
            run.abandon()
            raise
        finally:
            if self._runs.get(ref) is run:
                del self._runs[ref]

    async def _run_alone(self, run: ChunkRun, stage: Stage) -> None:
        self._room.taken_in(run.claim.ref)
        if self._draining:
            run.close()
        async with self._isolation.turn(run):
            try:
                if stage is Stage.ALONE and not run.over.done():
                    await self._chunks.note_alone(run.claim, noted_at_first(run.claim))
                run.begin()
            except OutsideError as error:
                log.warning("not begun: %s", error, extra={"action": "note_failed", **of_claim(run.claim)})
                run.close()
            await run.over

    async def _end_corrupt(self, claim: Claim, error: CorruptChunkError) -> str:
        bundle = corrupt_outcomes(claim, error)
        log.critical(
            "chunk %s cannot be read, its %d jobs fail: %s",
            *(claim.ref.member, len(bundle.outcomes), error),
            extra={"action": "corrupt_chunk", "failed": len(bundle.outcomes), **of_claim(claim)},
        )
        try:
            await self._chunks.commit(claim, bundle, Finish())
        except OutsideError as failure:
            return f"not recorded: {failure}"
        return f"{len(bundle.outcomes)} failed: {error}"

    async def _give_back(self, claim: Claim, delay_ms: int, why: str) -> str:
        try:
            await self._chunks.release(claim, delay_ms)
        except OutsideError as error:
            log.warning("not given back: %s", error, extra={"action": "release_failed", **of_claim(claim)})
        return f"given back: {why}"


def _log_end(run: ChunkRun, summary: str) -> None:
    # A chunk of one job is a call, and calls have no lines of their own unless asked for.
    level = logging.INFO if run.claim.count > 1 else logging.DEBUG
    if not log.isEnabledFor(level):
        return
    p50_ms = run.p50_ms
    log.log(
        level,
        "%s in %.1f s",
        summary,
        run.held_s,
        extra={
            "action": "chunk_over",
            **of_claim(run.claim),
            "succeeded": run.succeeded,
            "failed": run.failed,
            "put_back": run.put_back,
            "p50_ms": None if p50_ms is None else round(p50_ms, 1),
            "duration_s": round(run.held_s, 3),
        },
    )
