"""Submission: a batch while its jobs are written."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

from callmill.config.public_api import ApiAddress
from callmill.errors import RedisUnavailableError
from callmill.jobs import Job
from callmill.jobs.line import Line
from callmill.jobs.packing import ChunkBuilder, JobPacker
from callmill.jobs.trace_context import TraceContext
from callmill.jobs.traffic import TrafficClass
from callmill.jobs.wire import Chunk, encode_chunk
from callmill.ledger.batches import Batches
from callmill.ledger.hint_labels import labels
from callmill.ledger.hints import HintPublisher
from callmill.ledger.keys import ChunkRef
from callmill.ledger.records import BatchState
from callmill.producer.connection import Connection
from callmill.producer.known_apis import KnownApis
from callmill.producer.memory_wait import MemoryWait, repeated_while_full

log = logging.getLogger(__name__)

WINDOW_JOBS = 4_000
WINDOW_BYTES = 4 * 1024 * 1024
"""Jobs or bytes gathered before they are written: what is written is always a prefix of what was given."""

_FEW_BYTES = 1024 * 1024
"""What a batch may have in Redis, whatever room it leaves to others."""

_RETRY_DELAYS_S = (0.1, 0.3, 1, 2, 4, 8)
_PENDING_POLL_S = 0.05
_SIGN_OF_LIFE_EVERY_S = 60.0


class Submission:
    """Writes jobs into an open batch, chunk by chunk, and seals it.

    A new batch is created when its first jobs are written: a submission that fails earlier leaves nothing behind.
    ``add`` touches no network and may be called from any thread; the rest belongs to one event loop.
    """

    def __init__(
        self,
        connection: Connection,
        apis: KnownApis,
        batch_id: str,
        *,
        name: str,
        traffic: TrafficClass,
        format: int,  # noqa: A002 - the word of the ledger
        start_at_once: bool,
        max_pending: int | None,
        own_lines: bool = False,
        create: Callable[[], Awaitable[object]] | None = None,
        written_jobs: int = 0,
        written_chunks: int = 0,
    ) -> None:
        self.batch_id = batch_id
        self._batches = connection.batches
        self._hints = connection.hints
        self._memory = connection.memory
        self._apis = apis
        self._packer = JobPacker(apis.find)
        self._name = name
        self._traffic = traffic
        self._format = format
        self._own_lines = own_lines
        self._start_at_once = start_at_once or max_pending is not None
        self._max_pending = max_pending
        self._create, self._is_new = create, create is not None
        self._position = self._written_jobs = written_jobs
        self._written_chunks = written_chunks
        self._wrote = self._sealed = False
        self._trace = TraceContext.current()
        self._window_jobs = WINDOW_JOBS if max_pending is None else max(1, min(WINDOW_JOBS, max_pending // 4))
        self._open: dict[str, ChunkBuilder] = {}
        self._full: list[ChunkBuilder] = []
        self._window_bytes = self._written_bytes = 0

    def add(self, job: Job) -> bool:
        """Check and keep a job; True when ``flush`` is due.

        Raises:
            JobError: Something about the job is wrong; nothing of it was kept.
        """
        wire, size_bytes = self._packer.pack(job, self._position)
        builder = self._open.get(job.api)
        if builder is None:
            builder = self._open[job.api] = ChunkBuilder(job.api, self._position)
        if builder.add(self._position, wire, size_bytes):
            self._full.append(self._open.pop(job.api))
        self._position += 1
        self._window_bytes += size_bytes
        return self._position - self._written_jobs >= self._window_jobs or self._window_bytes >= WINDOW_BYTES

    def note_id(self, job_id: str) -> None:
        """Take note of the id of a job that an earlier submission of this batch wrote, so that no other takes it."""
        self._packer.note_id(job_id)

    async def create(self) -> None:
        """Create the batch now, if it is new and does not exist yet, so that others can attach to it.

        While Redis's memory is full to the watermark, this waits.

        Raises:
            BatchStateError: A batch with this id already exists.
            RedisUnavailableError: Redis cannot be reached.
        """
        if self._create is not None:
            await MemoryWait(self._memory).over()
            await repeated_while_full(self._create)
            self._create = None

    async def flush(self) -> None:
        """Write what was added, in one step, and publish its hints unless it waits for the seal.

        While Redis's memory is full to the watermark, this waits.

        Raises:
            RedisUnavailableError: Redis stayed away; what was added is kept, and ``flush`` may be called again.
        """
        builders = [*self._full, *self._open.values()]
        if not builders:
            return
        await self.create()
        await self._wait_for_room()
        await MemoryWait(self._memory, self._stored_bytes).over(unless=self._is_cancelled)
        chunks = [builder.chunk(self._trace) for builder in builders]
        bound_to = {chunk.api: to for chunk in chunks if (to := self._apis.bound_to(chunk.api)) is not None}
        lines = [str(self._line(chunk.api, bound_to)) for chunk in chunks]
        payloads = list(zip(lines, await asyncio.to_thread(_encode, chunks), strict=True))
        self._wrote = True
        await self._repeat(
            lambda: self._batches.add(
                self.batch_id, self._written_chunks, payloads, park=self._parks, bound_to=bound_to
            )
        )
        refs = [ChunkRef(self.batch_id, number, line) for number, line in enumerate(lines, self._written_chunks)]
        for ref, chunk in zip(refs, chunks, strict=True):
            labels.note(ref, chunk.indexes, len(chunk.jobs))
        self._written_jobs = self._position
        self._written_bytes += sum(len(payload) for _, payload in payloads)
        self._written_chunks += len(chunks)
        self._full, self._open, self._window_bytes = [], {}, 0
        if not self._parks:
            await publish_hints(self._hints, refs, self._name)

    async def seal(self) -> None:
        """Write the rest, close the batch and start what waited for that."""
        await self.create()
        await self.flush()
        await self._repeat(lambda: self._batches.seal(self.batch_id, self._written_chunks))
        self._sealed = True
        if self._parks:
            await start_parked(self._batches, self._hints, self.batch_id, self._name)

    async def discard(self) -> None:
        """Undo the submission of a batch if nothing of it can have started; otherwise leave it as it is."""
        about = {"batch": self.batch_id, "jobs": self._written_jobs}
        if self._create is not None:
            return
        nothing_started = self._parks or (self._is_new and not self._wrote)
        if self._sealed or not nothing_started:
            log.warning("batch left as it is: its submission failed", extra={"action": "submission_failed", **about})
            return
        try:
            await self._batches.delete(self.batch_id)
        except RedisUnavailableError as error:  # why the submission failed is what its caller must see
            log.warning("batch not discarded: %s", error, extra={"action": "discard_failed", **about})

    def _line(self, api: str, bound_to: Mapping[str, ApiAddress]) -> Line:
        identity = bound_to[api].identity if api in bound_to else ""
        return Line(api, self._traffic, self._format, identity, self.batch_id if self._own_lines else "")

    @property
    def _parks(self) -> bool:
        return not self._start_at_once

    async def _wait_for_room(self) -> None:
        if self._max_pending is None:
            return
        room = self._max_pending - (self._position - self._written_jobs)
        told_s = time.monotonic()
        while True:
            record = await self._batches.record(self.batch_id)
            if record.total - record.recorded <= max(room, 0) or record.state is BatchState.CANCELLED:
                return
            if time.monotonic() - told_s > _SIGN_OF_LIFE_EVERY_S:
                await self._batches.still_open(self.batch_id)
                told_s = time.monotonic()
            await asyncio.sleep(_PENDING_POLL_S)

    async def _stored_bytes(self) -> int:
        """Return about how many bytes of what this submission wrote still wait for their outcome."""
        if self._written_bytes < _FEW_BYTES:
            return 0
        record = await self._batches.record(self.batch_id)
        return self._written_bytes * (record.total - record.recorded) // max(record.total, 1)

    async def _is_cancelled(self) -> bool:
        return (await self._batches.record(self.batch_id)).state is BatchState.CANCELLED

    async def _repeat(self, step: Callable[[], Awaitable[object]]) -> None:
        """Run an idempotent step, again after a while when Redis is away, and for ever while it is full."""
        for delay_s in _RETRY_DELAYS_S:
            try:
                await repeated_while_full(step)
            except RedisUnavailableError as error:
                log.warning(
                    "Redis is away, trying again: %s", error, extra={"action": "submit_retry", "batch": self.batch_id}
                )
                await asyncio.sleep(delay_s)
            else:
                return
        await repeated_while_full(step)


async def start_parked(batches: Batches, hints: HintPublisher, batch_id: str, name: str) -> None:
    """Queue every chunk that is held back and publish its hint; where Redis goes away, workers go on with it."""
    try:
        while refs := await batches.unpark(batch_id):
            await publish_hints(hints, refs, name)
    except RedisUnavailableError as error:
        log.warning(
            "chunks not queued; workers will do it: %s", error, extra={"action": "unpark_failed", "batch": batch_id}
        )


async def publish_hints(hints: HintPublisher, refs: list[ChunkRef], name: str) -> None:
    """Publish hints; without a broker the chunks stay queued in the ledger and workers find them there."""
    try:
        await asyncio.to_thread(hints.publish, refs, label=name)
    except RedisUnavailableError as error:
        log.warning(
            "hints not published; workers will find the chunks: %s",
            error,
            extra={"action": "hints_lost", "batch": refs[0].batch_id, "chunks": len(refs)},
        )


def _encode(chunks: list[Chunk]) -> list[bytes]:
    return [encode_chunk(chunk) for chunk in chunks]
