"""Chunk payloads and bundles of outcomes: whatever stands in Redis is read as something bounded, or refused."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from typing import Any

import msgspec
from fuzzing import fuzz
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from callmill.config.profiles import ApiProfile
from callmill.errors import CorruptChunkError, UnknownFormatError
from callmill.jobs.bounds import MAX_CHUNK_BYTES, MAX_CHUNK_JOBS, MAX_HEADERS, MAX_HEADERS_LENGTH, MAX_INDEX
from callmill.jobs.chunk_reader import ReadChunk, read_chunk
from callmill.jobs.trace_context import TraceContext
from callmill.jobs.traffic import NORMAL
from callmill.jobs.wire import (
    Chunk,
    WireCost,
    WireJob,
    WireOutcome,
    decode_outcomes,
    encode_chunk,
    encode_outcomes,
)
from callmill.workers.call import Call
from callmill.workers.request_builder import ForbiddenUrlError, RequestBuilder

GOOD = encode_chunk(
    Chunk(
        "api",
        7,
        [
            WireJob("GET", "/x?a=1", id="one", headers={"Accept": "text/plain"}),
            WireJob("POST", "/y", body=b'{"model":"m"}', content_type="application/json", tokens=5, timeout_s=1.5),
            WireJob("PUT", "/z", idempotency_key="k", deadline_ms=1, tokens=9, cost=WireCost(1, 2, "m")),
        ],
        TraceContext("00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"),
    )
)
OUTCOME = WireOutcome(0, "id", 200, b"body" * 300, {"x-request-id": "r"}, None, None, 1, 2, 3)
GOOD_BUNDLES = [encode_outcomes([OUTCOME]), encode_outcomes([OUTCOME] * 3)]

PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.sampled_from(["GET", "CONNECT", "/", "/x", "Host", "a\r\nb: c", "\x00", "é", "x" * 600, "a" * 70_000])
)
VALUES: SearchStrategy[Any] = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=13) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
JOBS = st.lists(
    st.tuples(st.sampled_from(["GET", "POST", "M-SEARCH", "CONNECT", ""]) | PLAIN, PLAIN, PLAIN)
    | st.lists(VALUES, max_size=13)
    | st.tuples(
        st.just("GET"), st.just("/"), st.none(), st.dictionaries(st.text(max_size=12), st.text(max_size=12), max_size=3)
    ),
    max_size=4,
)
PACKED = st.one_of(
    st.tuples(st.just("api"), st.just(0) | PLAIN | st.lists(PLAIN, max_size=4), JOBS),
    st.tuples(st.just("api"), st.just(0), JOBS, VALUES),
    VALUES,
).map(msgspec.msgpack.encode)
"""MessagePack of the right shape, of nearly that, and of any."""


def framed(version: int, count: int, packed: bytes) -> bytes:
    """Return a payload whose frame is right."""
    return struct.pack(">BI", version, count) + zlib.compress(packed)


CUTS = st.tuples(st.integers(0, 400), st.integers(0, 400), st.binary(max_size=6))
COUNTS = st.integers(0, 5) | st.integers(0, 2**32 - 1)


def mutated(good: bytes, cuts: list[tuple[int, int, bytes]]) -> bytes:
    """Return the bytes with some of them replaced."""
    data = bytearray(good)
    for at, length, put in cuts:
        data[at % (len(data) + 1) : at % (len(data) + 1) + length % 8] = put
    return bytes(data)


def repacked(cuts: list[tuple[int, int, bytes]]) -> bytes:
    """Return a good payload of whose unpacked part some bytes are replaced."""
    return GOOD[:5] + zlib.compress(mutated(zlib.decompress(GOOD[5:]), cuts))


PAYLOADS = st.one_of(
    st.binary(max_size=64),
    st.lists(CUTS, min_size=1, max_size=3).map(lambda cuts: mutated(GOOD, cuts)),
    st.lists(CUTS, min_size=1, max_size=3).map(repacked),
    st.builds(framed, st.just(1) | st.integers(0, 255), COUNTS, PACKED | st.binary(max_size=64)),
)
REQUESTS = RequestBuilder(ApiProfile(name="api", base_url="https://api.example.com/v1"))


def check_sendable(read: ReadChunk) -> None:
    """Every job that passed the checks becomes a request that HTTP can carry, to the API and nowhere else."""
    for offset, job in enumerate(read.chunk.jobs):
        if offset in read.invalid:
            continue
        index = read.chunk.index(offset)
        assert 0 <= index <= MAX_INDEX + MAX_CHUNK_JOBS
        call = Call(job, owner_of(), offset, index, f"b-{index}")
        call.trace = read.chunk.trace
        try:
            method, url, headers, _, timeout_s = REQUESTS.build(call, 0)
        except ForbiddenUrlError:
            continue
        assert method.isascii()
        assert method.isprintable()
        assert " " not in method
        assert url.startswith("https://api.example.com/v1/") or url == "https://api.example.com/v1"
        assert 0 < timeout_s <= 24 * 3600
        assert len(headers) <= MAX_HEADERS + 4
        assert sum(map(len, headers)) + sum(map(len, headers.values())) <= MAX_HEADERS_LENGTH + 12_000
        for name, value in headers.items():
            assert name.lower() not in {"host", "content-length", "transfer-encoding", "authorization", "connection"}
            assert not {"\r", "\n", "\0"} & set(value)
            value.encode()


class _Owner:
    traffic = NORMAL


def owner_of() -> Any:
    """Return who a call belongs to, of which nothing is asked here."""
    return _Owner()


@fuzz(PAYLOADS, COUNTS, examples=300)
def test_a_payload_is_a_chunk_or_corrupt(payload: bytes, count: int) -> None:
    """A payload is refused as corrupt or of a newer format, or it is a chunk whose checked jobs can be sent."""
    says = struct.unpack(">I", payload[1:5])[0] if len(payload) >= 5 else count
    for jobs in (count, says):
        with suppress(CorruptChunkError, UnknownFormatError):
            read = read_chunk(payload, jobs)
            assert len(read.chunk.jobs) == jobs <= MAX_CHUNK_JOBS
            assert read.held_bytes <= 10 * MAX_CHUNK_BYTES
            check_sendable(read)


@fuzz(
    st.one_of(
        st.binary(max_size=64),
        st.tuples(st.sampled_from(GOOD_BUNDLES), st.lists(CUTS, min_size=1, max_size=3)).map(
            lambda both: mutated(*both)
        ),
        st.tuples(st.sampled_from([b"\0", b"\1"]), VALUES).map(lambda both: both[0] + msgspec.msgpack.encode(both[1])),
        VALUES.map(lambda value: b"\1" + zlib.compress(msgspec.msgpack.encode(value))),
    ),
    examples=300,
)
def test_a_bundle_is_outcomes_or_corrupt(data: bytes) -> None:
    """A bundle of outcomes is refused as corrupt or of a newer format, or its outcomes have their public form."""
    with suppress(CorruptChunkError, UnknownFormatError):
        for outcome in decode_outcomes(data):
            assert isinstance(outcome.to_outcome("b", "1-1/1").id, str)
