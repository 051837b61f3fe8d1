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

import msgspec
from msgspec import Struct

from callmill.errors import CorruptChunkError, UnknownFormatError
from callmill.jobs.outcome import Outcome, OutcomeError
from callmill.jobs.trace_context import TraceContext

VERSION = 1
"""Version of the chunk format; a reader refuses what it does not know."""

_PREFIX = struct.Struct(">BI")
_PLAIN, _ZLIB = b"\x00", b"\x01"
_COMPRESS_FROM_BYTES = 512
_FASTEST = 1


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
    headers: dict[str, str] | None = None
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
    indexes: int | list[int]
    jobs: list[WireJob]
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


def decode_chunk(data: bytes, jobs: int | None = None) -> Chunk:
    """Return the chunk that the bytes hold.

    Args:
        data: The bytes.
        jobs: How many jobs it must have, where that is known.

    Raises:
        UnknownFormatError: A newer version wrote it.
        CorruptChunkError: The bytes are no chunk, or one of another size.
    """
    try:
        version, count = _PREFIX.unpack_from(data)
        if version < VERSION or count != (count if jobs is None else jobs):
            raise CorruptChunkError(
                f"its {len(data):,} bytes do not begin like a chunk of {count if jobs is None else jobs} jobs"
            )
        if version != VERSION:
            raise UnknownFormatError(f"chunk format {version}, this worker knows {VERSION}: upgrade this worker")
        chunk = _chunk_decoder.decode(zlib.decompress(memoryview(data)[_PREFIX.size :]))
    except (struct.error, zlib.error, msgspec.MsgspecError, RecursionError) as error:
        raise CorruptChunkError(f"its {len(data):,} bytes are no chunk: {error}") from error
    if len(chunk.jobs) != count or (isinstance(chunk.indexes, list) and len(chunk.indexes) != count):
        raise CorruptChunkError(f"it says {count} jobs and has {len(chunk.jobs)}")
    return chunk


def encode_outcomes(outcomes: Sequence[WireOutcome]) -> bytes:
    """Return a bundle of outcomes as bytes."""
    packed = _encoder.encode(outcomes)
    return _PLAIN + packed if len(packed) < _COMPRESS_FROM_BYTES else _ZLIB + zlib.compress(packed, _FASTEST)


def decode_outcomes(data: bytes) -> list[WireOutcome]:
    """Return the outcomes of a bundle.

    Raises:
        UnknownFormatError: A newer version wrote it.
    """
    packing, packed = data[:1], memoryview(data)[1:]
    if packing not in (_PLAIN, _ZLIB):
        raise UnknownFormatError(f"outcome format {packing!r} is unknown: upgrade this program")
    return _outcomes_decoder.decode(zlib.decompress(packed) if packing == _ZLIB else packed)
