"""The wire format: what is written is what is read, and what is not known is refused."""

from __future__ import annotations

import contextlib
import struct
import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callmill.errors import CorruptChunkError, UnknownFormatError
from callmill.jobs.wire import (
    Chunk,
    WireCost,
    WireJob,
    WireOutcome,
    decode_chunk,
    decode_outcomes,
    encode_chunk,
    encode_outcomes,
)

TEXT = st.text(max_size=20)
MAYBE_TEXT = st.none() | TEXT
COUNT = st.integers(0, 2**53)
INDEX = st.integers(0, 2**53 - 1)
HEADERS = st.dictionaries(TEXT, TEXT, max_size=3)
BODY = st.binary(max_size=200)

COSTS = st.builds(WireCost, output_tokens=st.none() | COUNT, weight=COUNT, model=MAYBE_TEXT)
JOBS = st.builds(
    WireJob,
    method=TEXT,
    url=TEXT,
    id=MAYBE_TEXT,
    headers=st.none() | HEADERS,
    body=st.none() | BODY,
    content_type=MAYBE_TEXT,
    timeout_s=st.none() | st.floats(0.001, 1e6),
    tokens=st.none() | COUNT,
    idempotency_key=MAYBE_TEXT,
    deadline_ms=st.none() | COUNT,
    cost=st.none() | COSTS,
)
OUTCOMES = st.builds(
    WireOutcome,
    index=COUNT,
    id=MAYBE_TEXT,
    status=st.none() | st.integers(100, 599),
    body=BODY,
    headers=HEADERS,
    error_code=MAYBE_TEXT,
    error_message=MAYBE_TEXT,
    attempts=COUNT,
    started_ms=COUNT,
    latency_us=COUNT,
)


@given(api=TEXT, first=INDEX, jobs=st.lists(JOBS, max_size=5))
def test_contiguous_chunk_round_trips(api, first, jobs):
    """A chunk of jobs that follow each other comes back whole, each job with its position, its count in front."""
    data = encode_chunk(Chunk(api, first, jobs))
    chunk = decode_chunk(data)
    assert (chunk.api, chunk.jobs) == (api, jobs)
    assert [chunk.index(offset) for offset in range(len(jobs))] == list(range(first, first + len(jobs)))
    assert struct.unpack_from(">BI", data) == (1, len(jobs))


@given(st.lists(st.tuples(INDEX, JOBS), max_size=5))
def test_scattered_chunk_round_trips(numbered):
    """A chunk of jobs from all over a batch keeps each job's own position."""
    indexes = [index for index, _ in numbered]
    chunk = decode_chunk(encode_chunk(Chunk("api", indexes, [job for _, job in numbered])))
    assert [(chunk.index(offset), job) for offset, job in enumerate(chunk.jobs)] == numbered


@given(job=JOBS)
def test_jobs_of_other_releases_are_read(job):
    """A job written before costs were known is read as one without, and what a newer release appends is passed over."""
    fields = msgspec.to_builtins(job, builtin_types=(bytes,))
    older, newer = ([fields[:-1]], [[*fields, {"more": [1]}]])
    packed = [
        struct.pack(">BI", 1, 1) + zlib.compress(msgspec.msgpack.encode(["api", 0, jobs])) for jobs in (older, newer)
    ]
    assert decode_chunk(packed[0]).jobs == [msgspec.structs.replace(job, cost=None)]
    assert decode_chunk(packed[1]).jobs == [job]


@given(st.lists(OUTCOMES, max_size=12))
def test_outcomes_round_trip(outcomes):
    """A bundle of outcomes comes back whole, compressed or not."""
    assert decode_outcomes(encode_outcomes(outcomes)) == outcomes


@given(version=st.integers(2, 255), rest=BODY)
def test_unknown_chunk_version_is_refused(version, rest):
    """A chunk of a newer version is refused by its first byte, whatever follows its count."""
    with pytest.raises(UnknownFormatError, match=f"format {version}"):
        decode_chunk(struct.pack(">BI", version, 1) + rest, 1)


@given(data=st.binary(max_size=64), jobs=st.integers(1, 500))
def test_what_is_no_chunk_is_called_corrupt(data, jobs):
    """Bytes that nobody wrote as a chunk of so many jobs are refused as such; a newer format has the right count."""
    newer = len(data) >= 5 and data[0] > 1 and struct.unpack(">I", data[1:5]) == (jobs,)
    with pytest.raises(UnknownFormatError if newer else CorruptChunkError):
        decode_chunk(data, jobs)


@given(cut=st.integers(0, 30), flip=st.integers(1, 255), at=st.integers(0, 200))
def test_a_damaged_chunk_is_never_taken_for_another(cut, flip, at):
    """A chunk that lost its end, or of which a byte behind the prefix changed, is refused or comes back as it was."""
    chunk = Chunk("api", 0, [WireJob("GET", f"/{n}") for n in range(9)])
    whole = encode_chunk(chunk)
    at = 5 + at % (len(whole) - 5)
    for damaged in (whole[: len(whole) - 1 - cut], whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :]):
        with contextlib.suppress(CorruptChunkError):
            assert decode_chunk(damaged, 9) == chunk


@given(packing=st.integers(2, 255), rest=BODY)
def test_unknown_packing_of_outcomes_is_refused(packing, rest):
    """A bundle packed in an unknown way is refused by its first byte."""
    with pytest.raises(UnknownFormatError):
        decode_outcomes(bytes([packing]) + rest)


def test_chunk_is_small():
    """Five hundred jobs with small JSON bodies cost less than 12 bytes each on the wire."""
    jobs = [WireJob("POST", "/v1/items", f"row-{n}", None, b'{"n":%d}' % n, "application/json") for n in range(500)]
    assert len(encode_chunk(Chunk("api", 0, jobs))) < 500 * 12


def test_outcomes_are_small():
    """A hundred outcomes with equal headers cost less than 25 bytes each in the stream."""
    outcomes = [
        WireOutcome(n, None, 200, b'{"ok":true}', {"content-type": "application/json"}, None, None, 1, 10**12 + n, n)
        for n in range(100)
    ]
    assert len(encode_outcomes(outcomes)) < 100 * 25
