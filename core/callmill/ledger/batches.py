"""The producers' side of the ledger: create, fill, seal, steer and read batches."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from callmill.config.lua_script import Arguments, Call, LuaScript
from callmill.config.public_api import ApiAddress
from callmill.errors import BatchNotFoundError, BatchStateError, CorruptChunkError, UnknownFormatError, UsageError
from callmill.jobs.bounds import MAX_CHUNK_BYTES, MAX_CHUNK_JOBS
from callmill.jobs.formats import FORMAT, newer_batch
from callmill.jobs.outcome import Outcome
from callmill.jobs.traffic import NORMAL, TrafficClass
from callmill.jobs.wire import decode_chunk, decode_outcomes
from callmill.ledger import batch_scripts as scripts
from callmill.ledger import keys
from callmill.ledger.api_bindings import other_api
from callmill.ledger.failure_filter import ALL, FailureFilter
from callmill.ledger.failures import Failures
from callmill.ledger.keys import BatchKeys, ChunkRef
from callmill.ledger.latency import quantiles_s
from callmill.ledger.records import BatchRecord, BatchState, read_number, recorded_per_s
from callmill.ledger.session import LedgerSession
from callmill.ledger.superseded import Superseded, blocks_of

_CURSOR = re.compile(r"\d{1,19}-\d{1,19}(/\d{1,9})?", re.ASCII)
FIRST = "0-0/0"
"""The cursor before the first outcome."""

_UNPARK_AT_ONCE = 500
_BLOCK_MS = 2000
_FEW_BUNDLES, _BUNDLES_AT_ONCE = 4, 64
_BYTES_AT_ONCE = 16 * 2**20
"""What is read ahead, once it is known how large bundles are."""
_RELEASE_EVERY_S = 1.0
_BATCHES_AT_ONCE = 20
_CHUNKS_AT_ONCE = 200
_TO_NONE: Mapping[str, ApiAddress] = {}


class Batches:
    """The batches of the ledger, as a producer or an observer sees them."""

    def __init__(self, session: LedgerSession) -> None:
        self._session = session
        self.failures = Failures(session)
        self._redis = session.redis

    async def create(
        self,
        name: str,
        *,
        retention_ms: int,
        batch_id: str | None = None,
        traffic: TrafficClass = NORMAL,
        max_unread_bytes: int = 0,
        deadline_ms: int = 0,
        own_lines: bool = False,
    ) -> str:
        """Open a new batch and return its id.

        Args:
            name: For people.
            retention_ms: How long its outcomes are kept after its end.
            batch_id: Its id, where that is chosen beforehand.
            traffic: The class of its calls.
            max_unread_bytes: While more of its outcomes than this are not released, it is held; 0: it never is.
            deadline_ms: Unix time in milliseconds after which no call of it starts; 0: no such time.
            own_lines: Whether its chunks wait in lines of their own, so that workers can serve only this batch.

        Raises:
            BatchStateError: There is a batch with this id already.
        """
        batch_id = batch_id or secrets.token_hex(6)
        call = scripts.CREATE.call(
            scripts.CreateKeys(batches=keys.BATCHES, deadlines=keys.DEADLINES),
            scripts.CreateArguments(
                batch_id=batch_id,
                name=name,
                retention_ms=retention_ms,
                priority=traffic.priority.value,
                tenant=traffic.tenant,
                deadline_ms=deadline_ms,
                max_unread_bytes=max_unread_bytes,
                own_lines=own_lines,
            ),
            keys.shared(batch_id),
        )
        if not await self._session.run(call):
            raise already_there(batch_id)
        return batch_id

    async def now_ms(self) -> int:
        """Return the Unix time in milliseconds by Redis's clock."""
        seconds, microseconds = await self._session.answer(self._redis.time())
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def exists(self, batch_id: str) -> bool:
        """Say whether a batch with this id exists, in any format."""
        return bool(await self._session.answer(self._redis.exists(BatchKeys(batch_id).meta)))

    async def add(
        self,
        batch_id: str,
        first: int,
        chunks: Sequence[tuple[str, bytes]],
        *,
        park: bool,
        bound_to: Mapping[str, ApiAddress] = _TO_NONE,
    ) -> int:
        """Append chunks (line, payload), all or none, and return the batch's jobs so far. Safe to repeat.

        Args:
            batch_id: The batch, which must be open.
            first: Number of the first of these chunks: the batch's chunks so far.
            chunks: Line, as text, and payload of each.
            park: Hold them back until ``unpark``.
            bound_to: Which API each of their API names means; those left out: any.

        Raises:
            ApiMismatchError: The batch is bound to another API of that name.
            BatchStateError: The batch is sealed or cancelled, or somebody else appends to it.
            BatchNotFoundError: There is no such batch.
            CorruptChunkError: A payload is none of a chunk.
        """
        call = scripts.ADD.call(
            scripts.InLines([keys.queued(line) for line, _ in chunks]),
            scripts.AddArguments(
                first=first,
                park=park,
                bindings={api: str(bound) for api, bound in bound_to.items()},
                members=[ChunkRef(batch_id, number, line).member for number, (line, _) in enumerate(chunks, first)],
                payloads=[payload for _, payload in chunks],
            ),
            keys.shared(batch_id),
        )
        added = scripts.Added(*await self._session.run_lasting(call))
        _raise_unless_open(batch_id, added.verdict)
        if added.verdict == b"oversize":
            raise CorruptChunkError(f"batch {batch_id}: a payload is no chunk of at most {MAX_CHUNK_JOBS:,} jobs")
        if added.verdict == b"elsewhere":
            api, known = added.api.decode(), ApiAddress.parse(added.bound_to.decode())
            raise other_api(f"batch {batch_id}", api, known, bound_to[api])
        if added.verdict == b"conflict":
            _raise_if_lost(batch_id, added.chunks, first)
            raise BatchStateError(f"batch {batch_id}: another producer appended to it; only one may submit at a time")
        return added.total

    async def seal(self, batch_id: str, chunks: int | None = None) -> int:
        """Close the batch for new jobs and return how many it has. Safe to repeat.

        Args:
            batch_id: The batch.
            chunks: How many were written to it, where that is known.

        Raises:
            BatchStateError: It was cancelled, or Redis lost some of the chunks.
            BatchNotFoundError: There is no such batch.
        """
        told = scripts.SealArguments(batch_id=batch_id, chunks=chunks)
        sealed = scripts.Sealed(*await self._session.run_lasting(_about(batch_id, scripts.SEAL, told)))
        _raise_unless_open(batch_id, sealed.verdict)
        if sealed.verdict == b"short" and chunks is not None:
            _raise_if_lost(batch_id, sealed.chunks, chunks)
        return sealed.total

    async def unpark(self, batch_id: str) -> list[ChunkRef]:
        """Queue some of the chunks that are held back; publish their hints and call again until none comes.

        None comes while the batch is paused, is full of unread outcomes, or waits for its seal.
        """
        wanted = scripts.UnparkArguments(batch_id=batch_id, limit=_UNPARK_AT_ONCE, queued=keys.queued(""))
        members = await self._session.run(_about(batch_id, scripts.UNPARK, wanted))
        return [ChunkRef.parse(member.decode()) for member in members]

    async def any_to_look_after(self) -> bool:
        """Say whether there is a batch that has not ended, or anything else that a reconciler would look at."""
        names = (keys.ACTIVE, keys.DUE, keys.RESUMED, keys.OPEN, keys.DEADLINES)
        return bool(await self._session.answer(self._redis.exists(*names)))

    async def resumed(self) -> list[str]:
        """Return the batches that may run and still have chunks held back, because who was to unpark them died."""
        return [batch_id.decode() for batch_id in await self._session.answer(self._redis.smembers(keys.RESUMED))]

    async def still_open(self, batch_id: str) -> None:
        """Note that the batch's producer lives, although it writes nothing now."""
        now_s, _ = await self._session.answer(self._redis.time())
        await self._session.answer(self._redis.zadd(keys.OPEN, {batch_id: now_s * 1000}, xx=True))

    async def left_open(self, unwritten_for_ms: int) -> list[str]:
        """Return batches that are not sealed and that nobody has written to for so long."""
        now_s, _ = await self._session.answer(self._redis.time())
        ids = await self._session.answer(
            self._redis.zrangebyscore(keys.OPEN, "-inf", now_s * 1000 - unwritten_for_ms, start=0, num=_BATCHES_AT_ONCE)
        )
        return [batch_id.decode() for batch_id in ids]

    async def overdue(self) -> list[str]:
        """Return batches whose deadline has passed, but for those that ended, or are held back now."""
        now_s, _ = await self._session.answer(self._redis.time())
        ids = await self._session.answer(
            self._redis.zrangebyscore(keys.DEADLINES, "-inf", now_s * 1000, start=0, num=_BATCHES_AT_ONCE)
        )
        overdue = []
        for batch_id in ids:
            meta = BatchKeys(batch_id.decode()).meta
            fields = self._redis.hmget(meta, "format", "control", "full", "ended_ms")
            written, control, full, ended = await self._session.answer(fields)
            if int(written or 1) > FORMAT:
                continue
            if control is None or ended is not None:
                await self._session.answer(self._redis.zrem(keys.DEADLINES, batch_id))
            elif control == b"run" and full is None:
                overdue.append(batch_id.decode())
        return overdue

    async def unfinished(self, batch_id: str) -> AsyncIterator[ChunkRef]:
        """Yield the readable chunks of a batch that nobody holds and that have jobs without an outcome."""
        record, batch = await self.record(batch_id), BatchKeys(batch_id)
        async for number, state in self._redis.hscan_iter(batch.state, count=_CHUNKS_AT_ONCE):
            if state.split(b"|")[1] in b"DL":
                continue
            size_bytes = await self._session.answer(self._redis.hstrlen(batch.chunks, number))
            if not 0 < size_bytes <= MAX_CHUNK_BYTES:
                continue
            payload = await self._session.answer(self._redis.hget(batch.chunks, number))
            if payload is not None and (api := _readable_api(payload)) is not None:
                yield ChunkRef(batch_id, int(number), str(record.line(api)))

    async def control(self, batch_id: str, control: str, reason: str = "") -> bool:
        """Set what a batch should do: ``run``, ``paused`` or ``cancelled``. False: it is over already.

        Args:
            batch_id: The batch.
            control: One of the three.
            reason: Why it is cancelled, where nobody asked for it.

        Raises:
            BatchNotFoundError: There is no such batch.
        """
        wanted = scripts.ControlArguments(batch_id=batch_id, control=control, reason=reason)
        verdict = await self._session.run_lasting(_about(batch_id, scripts.CONTROL, wanted))
        _raise_if_missing(batch_id, verdict)
        return bool(verdict == b"ok")

    async def controls(self) -> int:
        """Return a number that grows whenever a batch is paused, resumed, cancelled, deleted or bound anew."""
        return int(await self._session.answer(self._redis.get(keys.CONTROLS)) or 0)

    async def retry_failed(self, batch_id: str, where: FailureFilter = ALL) -> tuple[int, list[ChunkRef]]:
        """Queue failed jobs again; return how many, and the chunks that need hints.

        Their outcomes so far are superseded. Jobs in a chunk that a worker holds are queued when it releases the chunk.

        Raises:
            BatchNotFoundError: There is no such batch.
            BatchStateError: It was cancelled.
        """
        record = await self.record(batch_id)
        if record.state is BatchState.CANCELLED:
            raise BatchStateError(f"batch {batch_id} was cancelled; what it left undone can only be submitted anew")
        jobs, refs = 0, []
        async for failed in self.failures.chunks(batch_id, where):
            ref = ChunkRef(batch_id, failed.number, str(record.line(failed.api)))
            call = scripts.RETRY_FAILED.call(
                scripts.InLine(keys.queued(ref.line)),
                scripts.RetryArguments(number=ref.number, member=ref.member, chosen=failed.bitmap),
                keys.shared(batch_id),
            )
            retried = scripts.Retried(*await self._session.run_lasting(call))
            jobs += retried.jobs
            if retried.hint_wanted:
                refs.append(ref)
        return jobs, refs

    async def record(self, batch_id: str) -> BatchRecord:
        """Return the batch as it stands.

        Raises:
            BatchNotFoundError: There is no such batch.
            UnknownFormatError: A newer Callmill wrote it.
        """
        fields = await self._session.answer(self._redis.hgetall(BatchKeys(batch_id).meta))
        if not fields:
            raise BatchNotFoundError(
                f"no batch {batch_id!r}: never submitted to this Redis, deleted, or its retention is over"
            )
        record = BatchRecord.read(batch_id, fields)
        if record.newer:
            raise newer_batch(batch_id, record.format)
        return record

    async def recent(self, limit: int = 100) -> list[BatchRecord]:
        """Return the newest batches first, but for those of a newer Callmill; forget those whose retention is over."""
        ids = await self._session.answer(self._redis.zrevrange(keys.BATCHES, 0, limit - 1))
        records = []
        for batch_id in ids:
            try:
                records.append(await self.record(batch_id.decode()))
            except BatchNotFoundError:
                await self._session.answer(self._redis.zrem(keys.BATCHES, batch_id))
                # An older worker ended the batch without removing this key.
                await self._session.answer(self._redis.unlink(BatchKeys(batch_id.decode()).superseded))
            except UnknownFormatError:
                continue
        return records

    async def outcomes(
        self, batch_id: str, after: str = FIRST, *, release: bool = False
    ) -> AsyncIterator[list[Outcome]]:
        """Yield outcomes, a bundle at a time, as they are recorded, until the batch is over.

        Outcomes from before a job was run again are left out. A reader that already has the earlier outcome gets
        the new one later: the newest counts.

        With ``release``, bundles are dropped from Redis soon after the next one was asked for, and all of them before
        it is waited for.

        Raises:
            BatchNotFoundError: There is no such batch.
            UsageError: ``after`` is no cursor.
        """
        stream = BatchKeys(batch_id).outcomes
        entry_id, skip = _checked_cursor(after)
        # The entry that the cursor points into is read again: its first ``skip`` outcomes are known.
        last = released = _before(entry_id) if skip else entry_id
        count, released_s = _FEW_BUNDLES, time.monotonic()
        while True:
            entries, ended, size_bytes = await self._read(batch_id, last, count)
            for last, bundle in entries:
                unknown = [outcome for outcome in bundle if _position(outcome) > skip] if last == entry_id else bundle
                if unknown:
                    yield unknown
                if release and time.monotonic() - released_s > _RELEASE_EVERY_S:
                    await self.release(batch_id, last)
                    released, released_s = last, time.monotonic()
            if release and last != released:
                await self.release(batch_id, last)
                released, released_s = last, time.monotonic()
            if size_bytes:
                count = max(1, min(_BUNDLES_AT_ONCE, len(entries) * _BYTES_AT_ONCE // size_bytes))
            if ended and (await self.record(batch_id)).ended and not await self._has_more(stream, last):
                return

    async def _read(self, batch_id: str, last: str, count: int) -> tuple[list[tuple[str, list[Outcome]]], bool, int]:
        """Return the next bundles with their entry ids, whether they may be the last, and their bytes.

        Superseded outcomes are left out.
        """
        names, entries, ended, size_bytes = BatchKeys(batch_id), [], True, 0
        answer = await self._session.read_lasting(
            "XREAD", "COUNT", count, "BLOCK", _BLOCK_MS, "STREAMS", names.outcomes, last
        )
        for raw_id, fields in _entries(answer):
            entry_id, ended = raw_id.decode(), b"end" in fields
            # The end marker is an entry as well: reading continues after it.
            entries.append((entry_id, [] if ended else _bundle(batch_id, entry_id, fields[b"b"])))
            # Unpacked: that may be a thousand times more than what Redis has.
            size_bytes += 0 if ended else len(fields[b"b"]) + sum(len(outcome.body) for outcome in entries[-1][1])
            if size_bytes >= _BYTES_AT_ONCE:
                break  # the rest is read again
        # Read after the entries, so that it covers every job that ran again by then.
        if blocks := blocks_of(bundle for _, bundle in entries):
            answers = await self._session.answer(self._redis.hmget(names.superseded, [str(block) for block in blocks]))
            superseded = Superseded(
                {block: data for block, data in zip(blocks, answers, strict=True) if data is not None}
            )
            entries = [(entry_id, superseded.newest_of(bundle, entry_id)) for entry_id, bundle in entries]
        return entries, ended, size_bytes

    async def release(self, batch_id: str, cursor: str) -> bool:
        """Drop the outcomes up to the cursor from Redis; they cannot be read again.

        Returns whether a batch that was held because of them goes on: then it has chunks to unpark.
        """
        entry_id, _ = _checked_cursor(cursor)
        told = scripts.ReleaseArguments(batch_id=batch_id, read=entry_id)
        return bool(await self._session.run(_about(batch_id, scripts.RELEASE, told)))

    async def delete(self, batch_id: str, queued: Sequence[ChunkRef] = ()) -> None:
        """Remove everything of the batch; its chunks still queued lead to nothing.

        Args:
            batch_id: The batch.
            queued: Chunks of it to remove from their queues as well.

        Raises:
            UnknownFormatError: A newer Callmill wrote it, and more than is known here.
        """
        written = read_number(await self._session.answer(self._redis.hget(BatchKeys(batch_id).meta, "format")))
        if written > FORMAT:
            raise newer_batch(batch_id, written)
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.unlink(*BatchKeys(batch_id).all())
        pipeline.srem(keys.RESUMED, batch_id)
        for index in (keys.BATCHES, keys.OPEN, keys.DEADLINES, keys.ACTIVE, keys.ENDED, keys.MOVING):
            pipeline.zrem(index, batch_id)
        for ref in queued:
            pipeline.zrem(keys.queued(ref.line), ref.member)
        pipeline.incr(keys.CONTROLS)
        await self._session.answer(pipeline.execute())

    async def latency_quantiles_s(self, batch_id: str, shares: Sequence[float]) -> list[float | None]:
        """Return the latency in seconds below which each share of the batch's calls lies."""
        raw = await self._session.answer(self._redis.hgetall(BatchKeys(batch_id).latency))
        counts = {int(key): int(value) for key, value in raw.items()}
        return quantiles_s(counts, shares)

    async def error_counters(self, batch_id: str) -> dict[bytes, bytes]:
        """Return the batch's counts of failure causes; see ``BatchKeys.errors``."""
        counters: dict[bytes, bytes] = await self._session.answer(self._redis.hgetall(BatchKeys(batch_id).errors))
        return counters

    async def rate_per_s(self, record: BatchRecord, over_s: int = 10) -> float:
        """Return the batch's outcomes per second over the last whole seconds, or those since its beginning."""
        now = await self._session.answer(self._redis.time())
        ring = await self._session.answer(self._redis.hvals(BatchKeys(record.id).rate))
        return recorded_per_s(record, ring, now[0], over_s)

    async def _has_more(self, stream: str, after: str) -> bool:
        return bool(await self._session.answer(self._redis.xrange(stream, min=f"({after}", count=1)))


def already_there(batch_id: str) -> BatchStateError:
    """Return the error that a batch with this id already exists."""
    return BatchStateError(f"batch {batch_id!r} already exists; attach to it, or choose another id")


def _readable_api(payload: bytes) -> str | None:
    """Return the API of a chunk; None where its payload cannot be read: who claims it deals with that."""
    try:
        return decode_chunk(payload).api
    except (CorruptChunkError, UnknownFormatError):
        return None


def _about(batch_id: str, script: LuaScript[scripts.NoKeys, Arguments], arguments: Arguments) -> Call:
    return script.call(scripts.NoKeys(), arguments, keys.shared(batch_id))


def _raise_if_missing(batch_id: str, verdict: bytes) -> None:
    if verdict == b"missing":
        raise BatchNotFoundError(f"no batch {batch_id!r}: deleted, or its retention is over")


def _raise_unless_open(batch_id: str, verdict: bytes) -> None:
    _raise_if_missing(batch_id, verdict)
    if verdict == b"closed":
        raise BatchStateError(f"batch {batch_id} takes no more jobs: it is sealed or cancelled")


def _raise_if_lost(batch_id: str, chunks: int, written: int) -> None:
    if chunks < written:
        raise BatchStateError(
            f"batch {batch_id}: Redis has {chunks} of the {written} chunks that it took, as after a failover that lost "
            "the last writes; submit the batch again, and see CALLMILL_WAIT_REPLICAS"
        )


def _checked_cursor(cursor: str) -> tuple[str, int]:
    if _CURSOR.fullmatch(cursor) is None:
        raise UsageError(f"{cursor!r:.100} is no cursor: give one that an outcome had, or that `outcomes` printed")
    return _parse_cursor(cursor)


def _parse_cursor(cursor: str) -> tuple[str, int]:
    entry_id, _, offset = cursor.partition("/")
    return entry_id, int(offset or 0)


def _position(outcome: Outcome) -> int:
    """Return an outcome's place among those recorded together with it, from 1."""
    return _parse_cursor(outcome.cursor)[1]


def _before(entry_id: str) -> str:
    ms, sequence = map(int, entry_id.split("-"))
    return f"{ms}-{sequence - 1}" if sequence else f"{ms - 1}-{2**64 - 1}"


def _entries(answer: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """Return the entries from what XREAD says of one stream."""
    return list(answer[0][1]) if answer else []


def _bundle(batch_id: str, entry_id: str, data: bytes) -> list[Outcome]:
    return [
        outcome.to_outcome(batch_id, f"{entry_id}/{offset}") for offset, outcome in enumerate(decode_outcomes(data), 1)
    ]
