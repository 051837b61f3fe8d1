"""Batches as somebody with rights on Redis can write them without ``submit``: any payload, any number of jobs."""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from callmill.config.redis_connections import connect
from callmill.jobs.wire import Chunk, WireJob, encode_chunk
from callmill.ledger import Batches, ChunkRef, LedgerSession
from callmill.ledger.hints import HintPublisher
from callmill.ledger.keys import BatchKeys

MiB = 2**20


@dataclass(frozen=True)
class RawChunk:
    """A payload, and how many jobs the ledger is told that it has."""

    payload: bytes
    jobs: int = 1


def framed(packed: bytes, jobs: int, level: int = 1) -> bytes:
    """Return a payload around packed bytes."""
    return struct.pack(">BI", 1, jobs) + zlib.compress(packed, level)


def packed_jobs(*jobs: Sequence[object]) -> bytes:
    """Return the packed part of a chunk with these jobs."""
    return msgspec.msgpack.encode(["api", 0, jobs])


def chunk_of(*jobs: WireJob) -> RawChunk:
    """Return a chunk as ``submit`` would write it, were it to take these jobs."""
    return RawChunk(encode_chunk(Chunk("api", 0, list(jobs))), len(jobs))


def bomb(size_bytes: int) -> RawChunk:
    """Return a small payload that unpacks to so many bytes."""
    squeeze = zlib.compressobj(9)
    zeros = bytes(MiB)
    parts = [squeeze.compress(zeros) for _ in range(size_bytes // MiB)]
    return RawChunk(struct.pack(">BI", 1, 1) + b"".join(parts) + squeeze.flush())


def tiny_objects(count: int, unpacked: bytes) -> RawChunk:
    """Return a chunk of very many of the smallest things, which are a hundred times larger in memory."""
    packed = msgspec.msgpack.encode("api")
    array = struct.pack(">BI", 0xDD, count)
    return RawChunk(framed(b"\x93" + packed + b"\x00" + array + unpacked * count, 1))


def wide_headers(jobs: int, headers: int) -> RawChunk:
    """Return a chunk whose jobs have as many headers as they may have, each of a few bytes."""
    return chunk_of(*(WireJob("GET", "/", headers={f"x{n}": "" for n in range(headers)}) for _ in range(jobs)))


def submit_raw(redis_url: str, chunks: Sequence[RawChunk], line: str = "api") -> str:
    """Write a batch past all checks, publish its hints and return its id."""
    return asyncio.run(_submit_raw(redis_url, chunks, line))


async def _submit_raw(redis_url: str, chunks: Sequence[RawChunk], line: str) -> str:
    async with connect(redis_url) as redis:
        batches = Batches(LedgerSession(redis))
        batch_id = await batches.create("raw", retention_ms=600_000)
        good = encode_chunk(Chunk("api", 0, [WireJob("GET", "/")]))
        await batches.add(batch_id, 0, [(line, good)] * len(chunks), park=True)
        names = BatchKeys(batch_id)
        for number, chunk in enumerate(chunks):
            await redis.hset(names.chunks, str(number), chunk.payload)
            await redis.hset(names.state, str(number), f"0|P||{chunk.jobs}|0|0|0")
        await redis.hset(names.meta, "total", str(sum(chunk.jobs for chunk in chunks)))
        await batches.seal(batch_id)
        refs: list[ChunkRef] = []
        while some := await batches.unpark(batch_id):
            refs += some
    hints = HintPublisher(redis_url)
    hints.publish(refs)
    hints.close()
    return batch_id
