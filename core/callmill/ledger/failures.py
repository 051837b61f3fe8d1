"""Failures: the failed jobs of a batch, chunk by chunk, and their causes; in memory that does not grow with them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec

from callmill.jobs.failure import FailedJob, FailureCause
from callmill.jobs.outcome import UNKNOWN_INDEX
from callmill.jobs.wire import decode_chunk
from callmill.ledger.bitmaps import bitmap_of, members
from callmill.ledger.failure_filter import FailureFilter
from callmill.ledger.failure_records import decode_failures
from callmill.ledger.keys import BatchKeys
from callmill.ledger.session import LedgerSession

_FIELDS_AT_ONCE = 200


class ChunkFailures(msgspec.Struct, frozen=True):
    """Failed jobs of one chunk.

    Attributes:
        number: The chunk.
        api: The API that its calls go to.
        bitmap: Which of its jobs; empty: every failed one.
    """

    number: int
    api: str
    bitmap: bytes


class Failures:
    """What failed in the batches of the ledger, and why."""

    def __init__(self, session: LedgerSession) -> None:
        self._session = session
        self._redis = session.redis

    async def causes(self, batch_id: str, where: FailureFilter) -> list[FailureCause]:
        """Return why jobs failed, the most frequent cause first."""
        causes: dict[tuple[str, str], FailureCause] = {}
        async for jobs in self.jobs(batch_id, where):
            for job in jobs:
                key = (job.api, job.last.cause)
                causes[key] = _with(causes.get(key), job)
        return sorted(causes.values(), key=lambda cause: (-cause.count, cause.api, cause.cause))

    async def jobs(self, batch_id: str, where: FailureFilter) -> AsyncIterator[list[FailedJob]]:
        """Yield the failed jobs, a chunk's at a time."""
        async for _, jobs in self._by_chunk(batch_id, where):
            yield list(jobs.values())

    async def retried(self, batch_id: str, where: FailureFilter) -> AsyncIterator[list[FailedJob]]:
        """Yield the jobs that failed earlier and do not count as failed now, some at a time."""
        keys, seen = BatchKeys(batch_id), dict[int, int]()
        async for page in self._pages(keys.failures):
            places = [_place(field) for field in page]
            bitmaps = await self._values(keys.failed, [str(number) for number, _ in places])
            jobs = []
            for (number, offset), bitmap, data in zip(places, bitmaps, page.values(), strict=True):
                if _has(bitmap, offset) or seen.get(number, 0) >> offset & 1:
                    continue
                seen[number] = seen.get(number, 0) | 1 << offset
                jobs.append(decode_failures(batch_id, data, failed=False))
            if chosen := [job for job in jobs if where(job)]:
                yield chosen

    async def chunks(self, batch_id: str, where: FailureFilter) -> AsyncIterator[ChunkFailures]:
        """Yield which jobs of which chunks failed and can run again; those of a damaged chunk cannot."""
        if where:
            async for number, jobs in self._by_chunk(batch_id, where):
                if again := {offset: job for offset, job in jobs.items() if job.index != UNKNOWN_INDEX}:
                    yield ChunkFailures(number, next(iter(again.values())).api, bitmap_of(again))
            return
        keys = BatchKeys(batch_id)
        async for number, bitmap in self._failed(keys):
            # One job tells the API of all; what an earlier version recorded has the payload only.
            (data,) = await self._values(keys.failures, [f"{number}/{next(members(bitmap))}"])
            if data is not None:
                job = decode_failures(batch_id, data, failed=True)
                if job.index != UNKNOWN_INDEX:
                    yield ChunkFailures(number, job.api, b"")
                continue
            (payload,) = await self._values(keys.chunks, [str(number)])
            if payload is not None:  # else cancelled or deleted meanwhile
                yield ChunkFailures(number, decode_chunk(payload).api, b"")

    async def _by_chunk(self, batch_id: str, where: FailureFilter) -> AsyncIterator[tuple[int, dict[int, FailedJob]]]:
        keys = BatchKeys(batch_id)
        async for number, bitmap in self._failed(keys):
            offsets = list(members(bitmap))
            records = await self._values(keys.failures, [f"{number}/{offset}" for offset in offsets])
            jobs = {
                offset: decode_failures(batch_id, data, failed=True)
                for offset, data in zip(offsets, records, strict=True)
                if data is not None
            }
            if chosen := {offset: job for offset, job in jobs.items() if where(job)}:
                yield number, chosen

    async def _failed(self, keys: BatchKeys) -> AsyncIterator[tuple[int, bytes]]:
        """Yield every chunk with failed jobs once, and their bitmap; a scan may name a chunk twice."""
        seen = set[int]()
        async for page in self._pages(keys.failed):
            for field, bitmap in page.items():
                if (number := int(field)) not in seen and any(bitmap):
                    seen.add(number)
                    yield number, bitmap

    async def _pages(self, key: str) -> AsyncIterator[Mapping[bytes, bytes]]:
        cursor = None
        while cursor != 0:
            cursor, page = await self._session.answer(self._redis.hscan(key, cursor or 0, count=_FIELDS_AT_ONCE))
            if page:
                yield page

    async def _values(self, key: str, fields: list[str]) -> list[bytes | None]:
        values: Any = await self._session.answer(self._redis.hmget(key, fields))
        return list(values)


def _with(cause: FailureCause | None, job: FailedJob) -> FailureCause:
    failure = job.last
    at = failure.failed_at
    if cause is None:
        return FailureCause(
            cause=failure.cause,
            api=job.api,
            code=failure.code,
            status=failure.status,
            count=1,
            first_at=at,
            last_at=at,
            example=job,
        )
    return msgspec.structs.replace(
        cause,
        count=cause.count + 1,
        first_at=min(cause.first_at, at),
        last_at=max(cause.last_at, at),
        example=job if at >= cause.last_at else cause.example,
    )


def _place(field: bytes) -> tuple[int, int]:
    number, _, offset = field.partition(b"/")
    return int(number), int(offset)


def _has(bitmap: bytes | None, offset: int) -> bool:
    return bitmap is not None and offset // 8 < len(bitmap) and bool(bitmap[offset // 8] >> offset % 8 & 1)
