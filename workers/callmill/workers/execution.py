"""Execution: what a worker process does with a chunk that it has claimed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from callmill.errors import CorruptChunkError, OutsideError, UnknownFormatError
from callmill.jobs.bounds import MAX_CHUNK_BYTES, SMALL_CHUNK_BYTES
from callmill.jobs.chunk_reader import ReadChunk, read_chunk
from callmill.jobs.line import Line
from callmill.jobs.wire_checks import is_line
from callmill.ledger import Bundle, ChunkRef, Chunks, Claim, Finish
from callmill.workers.chunk_run import ChunkRun, Recorder
from callmill.workers.corrupt_chunk import corrupt_outcomes, poison_outcomes
from callmill.workers.held_chunks import LargeChunks, Place
from callmill.workers.isolation import Isolation
from callmill.workers.lane import Lane
from callmill.workers.log_fields import of_claim
from callmill.workers.newer_batches import NewerBatches
from callmill.workers.one_by_one import OneByOne
from callmill.workers.room import Room
from callmill.workers.suspicion import Stage, noted_when_read, reading_is_suspect, stage_of, verdict_on_all

log = logging.getLogger(__name__)

_ISOLATED_LATER_MS = 1_000
"""When a chunk that must run alone is tried again, where another one does."""

_AFTER_BUG_MS = 15_000
_NO_ROOM_MS = 1_000
_NEWER_FORMAT_MS = 10_000
"""When a chunk that only a newer Callmill can read is offered again."""


class _NoRoomError(OutsideError):
    """What this process holds leaves no room for a chunk as large."""

    def __init__(self) -> None:
        super().__init__("too large beside the large ones that are held here")


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
        large: The room for chunks with very large jobs.
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
        large: LargeChunks | None = None,
    ) -> None:
        self._chunks = chunks
        self._lanes = lanes
        self._recorder = recorder
        self._room = room
        self._runs = runs
        self._lease_s = lease_s
        self._isolation = Isolation(room, runs.values)
        self._newer = newer
        self._large = large or LargeChunks()
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
            with self._large.place() as place:
                return await self._run(claim, line, asked_s, place)
        except UnknownFormatError as error:
            self._newer.met(claim.ref.batch_id, error)
            return await self._give_back(claim, _NEWER_FORMAT_MS, str(error))
        except CorruptChunkError as error:
            return await self._end_unread(claim, corrupt_outcomes(claim, error), f"cannot be read: {error}")
        except _NoRoomError as error:
            return await self._give_back(claim, _NO_ROOM_MS, str(error))
        except OutsideError as error:
            return await self._give_back(claim, _NO_ROOM_MS, f"not read: {error}")
        except Exception:  # the boundary of a chunk: whatever it is, the lease must not be held for nothing
            log.exception("a chunk met a bug", extra={"action": "chunk_bug", **of_claim(claim)})
            return await self._give_back(claim, _AFTER_BUG_MS, "a bug of Callmill; please report it")

    async def _run(self, claim: Claim, line: Line, asked_s: float, place: Place) -> str:
        stage = stage_of(claim)
        if stage is Stage.CONVICT_ALL:
            return await self._end_unread(claim, poison_outcomes(claim), verdict_on_all(claim))
        if stage.needs_process and not self._isolation.free:
            return await self._give_back(claim, _ISOLATED_LATER_MS, "it must run alone, as another chunk does now")
        # What may kill its worker when it is read is read when nothing runs beside it.
        read = None if stage.needs_process else await self._read(claim, place)
        lane = self._lanes[line.api]
        caller: Lane | OneByOne = lane
        if stage is Stage.ONE_BY_ONE:
            first = claim.suspect.offset if claim.suspect else None
            caller = OneByOne(lane, line.traffic, partial(self._chunks.note_alone, claim), first=first)
        ends_s = asked_s + self._lease_s
        run = ChunkRun(claim, None, caller, self._recorder, traffic=line.traffic, lease_ends_s=ends_s)
        with self._held(run):
            if read is None:
                await self._run_alone(run, stage, place)
            else:
                run.load(read)
                run.begin()
                self._room.taken_in(claim.ref)
                self._room.filled(line)
                if self._draining or self._isolation.taken:
                    run.close()
                await run.over
        summary = run.summary()
        _log_end(run, summary)
        return summary

    async def _read(self, claim: Claim, place: Place) -> ReadChunk:
        """Read a claimed chunk, if there is room for it."""
        if not is_line(claim.ref.batch_id):  # it is part of idempotency keys, which are headers
            raise CorruptChunkError("its batch has an id that cannot be sent")
        if claim.corrupt:
            raise CorruptChunkError(claim.corrupt)
        if claim.size_bytes > MAX_CHUNK_BYTES:
            raise CorruptChunkError(f"it has {claim.size_bytes:,} bytes; at most {MAX_CHUNK_BYTES:,} are read")
        payload = claim.payload
        if claim.size_bytes > SMALL_CHUNK_BYTES:
            if not place.take(2 * claim.size_bytes):
                raise _NoRoomError
            payload = await self._chunks.payload(claim)
        read = read_chunk(payload, claim.count)
        if not place.take(read.held_bytes):
            raise _NoRoomError
        return read

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

    async def _run_alone(self, run: ChunkRun, stage: Stage, place: Place) -> None:
        claim = run.claim
        self._room.taken_in(claim.ref)
        if self._draining:
            run.close()
        async with self._isolation.turn(run):
            try:
                if not run.over.done():
                    run.load(await self._read_noted(claim, stage, place))
                run.begin()
            except OutsideError as error:
                if isinstance(error, (CorruptChunkError, UnknownFormatError)):
                    raise
                log.warning("not begun: %s", error, extra={"action": "note_failed", **of_claim(claim)})
                run.close()
            await run.over

    async def _read_noted(self, claim: Claim, stage: Stage, place: Place) -> ReadChunk:
        """Read a chunk that runs alone, having noted it: who dies of that convicts it."""
        if not reading_is_suspect(claim, stage):
            return await self._read(claim, place)
        await self._chunks.note_alone(claim, None)
        read = await self._read(claim, place)
        if (noted := noted_when_read(claim, stage)) is not None:
            await self._chunks.note_alone(claim, noted)
        return read

    async def _end_unread(self, claim: Claim, bundle: Bundle, why: str) -> str:
        log.critical(
            "chunk %s is not run, its %d jobs fail: %s",
            *(claim.ref.member, len(bundle.outcomes), why),
            extra={"action": "corrupt_chunk", "failed": len(bundle.outcomes), **of_claim(claim)},
        )
        try:
            await self._chunks.commit(claim, bundle, Finish())
        except OutsideError as failure:
            return f"not recorded: {failure}"
        return f"{len(bundle.outcomes)} failed: {why}"

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
