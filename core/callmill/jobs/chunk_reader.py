"""Reading chunks that are to be run: what each job says is checked, and a job that is wrong harms no other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta, Raw, Struct

from callmill.errors import CorruptChunkError
from callmill.jobs.bounds import MAX_CHUNK_JOBS
from callmill.jobs.trace_context import TraceContext
from callmill.jobs.wire import Chunk, Index, Indexes, WireJob, checked_counts, unpack_chunk
from callmill.jobs.wire_checks import Problem, invalid_jobs

_UNREADABLE = WireJob("", "")
_JOB_BYTES, _HEADER_BYTES = 600, 150
"""What a job, and a header of it, take in memory beside their texts."""


class ReadChunk(Struct, frozen=True):
    """A chunk as a worker has it.

    Attributes:
        chunk: Its jobs.
        invalid: What is wrong with those of them that must not be sent, by offset.
        held_bytes: Roughly what it takes in memory.
    """

    chunk: Chunk
    invalid: Mapping[int, Problem]
    held_bytes: int


class _Packed(Struct, array_like=True, frozen=True):
    """A chunk whose jobs are not decoded yet."""

    api: str
    indexes: Index | Indexes
    jobs: Annotated[list[Raw], Meta(max_length=MAX_CHUNK_JOBS)]
    trace: Raw | None = None


_chunk_decoder = msgspec.msgpack.Decoder(Chunk)
_packed_decoder = msgspec.msgpack.Decoder(_Packed)
_job_decoder = msgspec.msgpack.Decoder(WireJob)
_trace_decoder = msgspec.msgpack.Decoder(TraceContext | None)


def read_chunk(data: bytes, jobs: int) -> ReadChunk:
    """Return the chunk that the bytes hold, with what is wrong with its jobs.

    Args:
        data: The bytes.
        jobs: How many jobs it must have.

    Raises:
        UnknownFormatError: A newer version wrote it.
        CorruptChunkError: The bytes are no chunk, one of another size, or one beyond the bounds.
    """
    packed, count = unpack_chunk(data, jobs)
    unreadable: dict[int, Problem] = {}
    try:
        chunk = _chunk_decoder.decode(packed)
    except (msgspec.MsgspecError, RecursionError):  # one wrong job is enough for that
        chunk, unreadable = _decoded_one_by_one(packed)
    checked_counts(chunk.indexes, len(chunk.jobs), count)
    trace = chunk.trace
    if trace is not None and TraceContext.read(trace.headers()) != trace:
        chunk = Chunk(chunk.api, chunk.indexes, chunk.jobs)  # a trace is no reason not to call
    headers = sum([len(job.headers) for job in chunk.jobs if job.headers is not None])
    held_bytes = len(data) + len(packed) + _JOB_BYTES * count + _HEADER_BYTES * headers
    return ReadChunk(chunk, {**invalid_jobs(chunk.jobs), **unreadable}, held_bytes)


def _decoded_one_by_one(packed: bytes) -> tuple[Chunk, dict[int, Problem]]:
    """Return a chunk with something in place of each job that cannot be decoded, and why that is."""
    jobs, unreadable = [], dict[int, Problem]()
    try:
        parts = _packed_decoder.decode(packed)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise CorruptChunkError(f"its {len(packed):,} unpacked bytes are no chunk: {error}") from error
    for at, raw in enumerate(parts.jobs):
        try:
            jobs.append(_job_decoder.decode(raw))
        except (msgspec.MsgspecError, RecursionError) as error:
            jobs.append(_UNREADABLE)
            unreadable[at] = "job", f"cannot be read: {error}"
    return Chunk(parts.api, parts.indexes, jobs, _trace(parts.trace)), unreadable


def _trace(raw: Raw | None) -> TraceContext | None:
    try:
        return None if raw is None else _trace_decoder.decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        return None
