"""BatchKeeper: ends what nobody else would end: batches whose producer is gone, and jobs whose batch is out of time."""

from __future__ import annotations

import logging
import time

from callmill.errors import (
    BatchNotFoundError,
    CorruptBatchError,
    CorruptChunkError,
    StaleLeaseError,
    UnknownFormatError,
)
from callmill.jobs.wire import WireJob, WireOutcome, assigned_id, decode_chunk
from callmill.ledger import Batches, Bundle, ChunkRef, Chunks, Claim, Finish
from callmill.workers.newer_batches import NewerBatches

log = logging.getLogger(__name__)

_CHUNKS_A_ROUND = 200
_LEFT_OPEN_EVERY_S = 30.0
"""Or ten times within the time that a batch may be left open, where that is short."""


class BatchKeeper:
    """Part of the reconciler: one worker at a time does this.

    Args:
        batches: The ledger's batches.
        chunks: The ledger's chunks.
        newer: Is told of what only a newer Callmill can read.
        open_batch_s: Seconds without a word from its producer after which a batch that is not sealed is cancelled.
    """

    def __init__(self, batches: Batches, chunks: Chunks, newer: NewerBatches, *, open_batch_s: float) -> None:
        self._batches = batches
        self._chunks = chunks
        self._newer = newer
        self._open_batch_s = open_batch_s
        self._next_left_open_s = 0.0

    async def look(self) -> None:
        """Do one round.

        Raises:
            RedisUnavailableError: Redis cannot be reached.
        """
        if time.monotonic() >= self._next_left_open_s:
            for batch_id in await self._batches.left_open(int(self._open_batch_s * 1000)):
                await self._expire(batch_id)
            self._next_left_open_s = time.monotonic() + min(_LEFT_OPEN_EVERY_S, self._open_batch_s / 10)
        for batch_id in await self._batches.overdue():
            await self._end_late_jobs(batch_id)

    async def _expire(self, batch_id: str) -> None:
        reason = f"its producer wrote nothing for {self._open_batch_s / 3600:g} h and never sealed it"
        try:
            await self._batches.control(batch_id, "cancelled", reason)
        except BatchNotFoundError:
            await self._batches.delete(batch_id)  # leaves no trace of it
        except UnknownFormatError as error:
            self._newer.met(batch_id, error)
            return
        except CorruptBatchError as error:
            log.warning("batch %s left open: %s", batch_id, error, extra={"action": "corrupt_batch", "batch": batch_id})
            return
        log.warning("batch %s expired: %s", batch_id, reason, extra={"action": "batch_expired", "batch": batch_id})

    async def _end_late_jobs(self, batch_id: str) -> None:
        """Record that they are too late, in the chunks that no worker holds; those that are held see to it there."""
        ended = 0
        try:
            async for ref in self._batches.unfinished(batch_id):
                claim = await self._chunks.claim(ref)
                if isinstance(claim, Claim):
                    await self._end(claim)
                ended += 1
                if ended == _CHUNKS_A_ROUND:  # the reconciler has other things to do, too
                    return
        except (
            BatchNotFoundError,
            CorruptBatchError,
            CorruptChunkError,
            StaleLeaseError,
            UnknownFormatError,
        ) as error:
            log.info("late jobs of %s left: %s", batch_id, error, extra={"action": "late_left", "batch": batch_id})

    async def _end(self, claim: Claim) -> None:
        chunk = decode_chunk(await self._chunks.payload(claim))
        late = [
            (offset, _too_late(claim.ref, job, chunk.index(offset), claim.attempts.get(offset, 0)))
            for offset, job in enumerate(chunk.jobs)
            if offset not in claim.recorded
        ]
        await self._chunks.commit(claim, Bundle(outcomes=late), Finish())


def _too_late(ref: ChunkRef, job: WireJob, index: int, attempts: int) -> WireOutcome:
    job_id = job.id or assigned_id(ref.batch_id, index)
    message = "its batch's deadline passed before it could start"
    return WireOutcome(index, job_id, None, b"", {}, "deadline", message, attempts, 0, 0)
