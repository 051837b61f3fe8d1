"""The wire format: how chunks of jobs and bundles of outcomes are written to Redis.

A chunk is ``version (1 byte) | count (4 bytes, big-endian) | zlib(msgpack([api, indexes, jobs]))``; the count stands
outside the compressed part because the ledger's scripts read it. Where the calls belong to a trace, its context is a
fourth element; readers that know of none pass it over, so the version is the same. A bundle of outcomes is ``packing
(1 byte) | msgpack([outcome, ...])``, the second part compressed where that pays.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta, Struct

from callmill.errors import CorruptChunkError, UnknownFormatError
from callmill.jobs.bounds import MAX_BUNDLE_BYTES, MAX_CHUNK_BYTES, MAX_CHUNK_JOBS, MAX_HEADERS, MAX_INDEX
from callmill.jobs.outcome import Outcome, OutcomeError
from callmill.jobs.trace_context import TraceContext

VERSION = 1
"""Version of the chunk format; a reader refuses what it does not know."""

_PREFIX = struct.Struct(">BI")
_PLAIN, _ZLIB = b"\x00", b"\x01"
_COMPRESS_FROM_BYTES = 512
_FASTEST = 1


Headers: TypeAlias = Annotated[dict[str, str], Meta(max_length=MAX_HEADERS)]
"""The decoder checks these lengths before it makes anything of what follows."""
Index: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_INDEX)]
Indexes: TypeAlias = Annotated[list[Index], Meta(max_length=MAX_CHUNK_JOBS)]


class WireCost(Struct, array_like=True, frozen=True, gc=False):
    """What a job says of its cost beyond ``tokens``; most jobs say nothing."""

    output_tokens: int | None = None
    weight: int = 1
    model: str | None = None


class WireJob(Struct, array_like=True, frozen=True, gc=False):
    """A job as a chunk carries it: the body encoded, the parameters part of the URL."""

    method: str
    url: str
    id: str | None = None
    headers: Headers | None = None
    body: bytes | None = None
    content_type: str | None = None
    timeout_s: float | None = None
    tokens: int | None = None
    idempotency_key: str | None = None
    deadline_ms: int | None = None
    cost: WireCost | None = None


class Chunk(Struct, array_like=True, frozen=True):
    """A slice of a batch: jobs of one API with their positions in the batch.

    ``indexes`` is the first position when the positions follow each other, else all of them; ``trace``: the trace that
    its calls belong to.
    """

    api: str
    indexes: Index | Indexes
    jobs: Annotated[list[WireJob], Meta(max_length=MAX_CHUNK_JOBS)]
    trace: TraceContext | None = None

    def index(self, offset: int) -> int:
        """Return the batch-wide position of the job at ``offset`` in this chunk."""
        return self.indexes + offset if isinstance(self.indexes, int) else self.indexes[offset]


class WireOutcome(Struct, array_like=True, frozen=True, gc=False):
    """An outcome as the batch's stream carries it."""

    index: int
    id: str | None
    status: int | None
    body: bytes
    headers: dict[str, str]
    error_code: str | None
    error_message: str | None
    attempts: int
    started_ms: int
    latency_us: int

    def to_outcome(self, batch_id: str, cursor: str) -> Outcome:
        """Return the public form, its id filled in where Callmill assigned it."""
        error = None if self.error_code is None else OutcomeError(self.error_code, self.error_message or "")
        return Outcome(
            id=assigned_id(batch_id, self.index) if self.id is None else self.id,
            index=self.index,
            ok=error is None,
            status=self.status,
            body=self.body,
            headers=self.headers,
            error=error,
            attempts=self.attempts,
            started_at=self.started_ms / 1e3,
            latency=self.latency_us / 1e6,
            cursor=cursor,
        )


_encoder = msgspec.msgpack.Encoder()
_chunk_decoder = msgspec.msgpack.Decoder(Chunk)
_outcomes_decoder = msgspec.msgpack.Decoder(list[WireOutcome])


def assigned_id(batch_id: str, index: int) -> str:
    """Return the id that Callmill gives the job at ``index``; it is never stored."""
    return f"{batch_id}-{index}"


def encode_chunk(chunk: Chunk) -> bytes:
    """Return the chunk as bytes."""
    written = (chunk.api, chunk.indexes, chunk.jobs) if chunk.trace is None else chunk
    return _PREFIX.pack(VERSION, len(chunk.jobs)) + zlib.compress(_encoder.encode(written), _FASTEST)


def unpack_chunk(data: bytes, jobs: int | None = None) -> tuple[bytes, int]:
    """Return the MessagePack part of a chunk, and how many jobs it must have.

    Args:
        data: The bytes.
        jobs: How many jobs it must have, where that is known.

    Raises:
        UnknownFormatError: A newer version wrote it.
        CorruptChunkError: The bytes are no chunk, one of another size, or one beyond the bounds.
    """
    if len(data) < _PREFIX.size:
        raise CorruptChunkError(f"its {len(data):,} bytes are no chunk")
    version, count = _PREFIX.unpack_from(data)
    expected = count if jobs is None else jobs
    if version < VERSION or count != expected or count > MAX_CHUNK_JOBS:
        raise CorruptChunkError(f"its {len(data):,} bytes do not begin like a chunk of {expected} jobs")
    if version != VERSION:
        raise UnknownFormatError(f"chunk format {version}, this worker knows {VERSION}: upgrade this worker")
    if len(data) > MAX_CHUNK_BYTES:
        raise CorruptChunkError(f"it has {len(data):,} bytes; at most {MAX_CHUNK_BYTES:,} are read")
    try:
        return _unzip(memoryview(data)[_PREFIX.size :], MAX_CHUNK_BYTES), count
    except zlib.error as error:
        raise CorruptChunkError(f"its {len(data):,} bytes are no chunk: {error}") from error


def decode_chunk(data: bytes, jobs: int | None = None) -> Chunk:
    """Return the chunk that the bytes hold; arguments and errors are those of ``unpack_chunk``."""
    packed, count = unpack_chunk(data, jobs)
    try:
        chunk = _chunk_decoder.decode(packed)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise CorruptChunkError(f"its {len(data):,} bytes are no chunk: {error}") from error
    checked_counts(chunk.indexes, len(chunk.jobs), count)
    return chunk


def checked_counts(indexes: int | list[int], jobs: int, count: int) -> None:
    """Raise CorruptChunkError unless a chunk has as many jobs, and positions for them, as it says."""
    if jobs != count or (isinstance(indexes, list) and len(indexes) != count):
        raise CorruptChunkError(f"it says {count} jobs and has {jobs}")


def _unzip(packed: memoryview, most_bytes: int) -> bytes:
    """Decompress; what would be larger is not, and raises like what is cut off or goes on after its end."""
    unzip = zlib.decompressobj()
    data = unzip.decompress(packed, most_bytes)
    if not unzip.eof or unzip.unused_data:
        beyond = len(data) >= most_bytes
        raise zlib.error(f"more than {most_bytes:,} bytes when unpacked" if beyond else "it does not end where it must")
    return data


def encode_outcomes(outcomes: Sequence[WireOutcome]) -> bytes:
    """Return a bundle of outcomes as bytes."""
    packed = _encoder.encode(outcomes)
    return _PLAIN + packed if len(packed) < _COMPRESS_FROM_BYTES else _ZLIB + zlib.compress(packed, _FASTEST)


def decode_outcomes(data: bytes) -> list[WireOutcome]:
    """Return the outcomes of a bundle.

    Raises:
        UnknownFormatError: A newer version wrote it.
        CorruptChunkError: The bytes are no bundle.
    """
    packing, packed = data[:1], memoryview(data)[1:]
    if packing not in (_PLAIN, _ZLIB):
        raise UnknownFormatError(f"outcome format {packing!r} is unknown: upgrade this program")
    try:
        return _outcomes_decoder.decode(_unzip(packed, MAX_BUNDLE_BYTES) if packing == _ZLIB else packed)
    except (zlib.error, msgspec.MsgspecError, RecursionError) as error:
        raise CorruptChunkError(f"{len(data):,} bytes are no bundle of outcomes: {error}") from error
