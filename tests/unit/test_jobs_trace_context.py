"""Trace contexts: found where OpenTelemetry has one, carried in chunks, added to calls."""

from __future__ import annotations

import subprocess
import sys
import zlib

import msgspec
import pytest
from opentelemetry import context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from callmill.jobs.trace_context import TraceContext
from callmill.jobs.wire import Chunk, WireJob, decode_chunk, encode_chunk

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CONTEXT = TraceContext(PARENT, "vendor=1")
JOBS = [WireJob("GET", "/")] * 3


def test_current_context_is_that_of_opentelemetry():
    """Inside a span the context names it, with its state; outside there is none."""
    assert TraceContext.current() is None
    with TracerProvider().get_tracer("t").start_as_current_span("s") as span:
        ids = span.get_span_context()
        current = TraceContext.current()
        assert current == TraceContext(f"00-{ids.trace_id:032x}-{ids.span_id:016x}-{ids.trace_flags:02x}")
    remote = SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(0), trace_state=TraceState([("vendor", "1")]))
    token = context.attach(trace.set_span_in_context(NonRecordingSpan(remote)))
    assert TraceContext.current() == TraceContext(f"00-{1:032x}-{2:016x}-00", "vendor=1")
    context.detach(token)


def test_opentelemetry_is_not_imported_for_it():
    """Asking for the context imports nothing: who does not use OpenTelemetry pays nothing."""
    program = (
        "import sys; from callmill.jobs.trace_context import TraceContext\n"
        "assert TraceContext.current() is None\n"
        "print(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_chunk_carries_its_context():
    """What is written with a context is read with it."""
    chunk = Chunk("api", 0, JOBS, CONTEXT)
    assert decode_chunk(encode_chunk(chunk)) == chunk


def test_chunk_without_context_is_as_before():
    """A chunk without one has three elements, and one of three elements has none."""
    data = encode_chunk(Chunk("api", 0, JOBS))
    assert len(msgspec.msgpack.decode(zlib.decompress(data[5:]))) == 3
    assert decode_chunk(data).trace is None


def test_older_reader_reads_a_chunk_with_a_context():
    """Who knows of three elements reads them, and passes over the fourth."""

    class OldChunk(msgspec.Struct, array_like=True, frozen=True):
        api: str
        indexes: int | list[int]
        jobs: list[WireJob]

    data = encode_chunk(Chunk("api", 0, JOBS, CONTEXT))
    assert data[0] == 1
    assert msgspec.msgpack.decode(zlib.decompress(data[5:]), type=OldChunk) == OldChunk("api", 0, JOBS)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"traceparent": "x"},
        {"traceparent": PARENT + "\r\nX-Evil: 1"},
        {"traceparent": PARENT.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32)},
        {"traceparent": "ff" + PARENT[2:]},
        {"traceparent": 7},
    ],
)
def test_what_cannot_be_a_context_is_none(headers):
    """Headers that are no trace context are passed over, whoever sent them."""
    assert TraceContext.read(headers) is None


def test_state_that_no_header_can_carry_is_left_out():
    """A tracestate with a line break does not reach a request."""
    assert TraceContext.read({"traceparent": PARENT, "tracestate": "a=1\r\nX: 1"}) == TraceContext(PARENT)


def test_trace_of_the_job_itself_wins_as_a_whole():
    """A job that names a trace keeps it, and gets no state of another one."""
    headers: dict[str, str] = {}
    CONTEXT.add_to(headers, {"TraceParent": "own"})
    assert headers == {}
    CONTEXT.add_to(headers, {"X-Other": "1"})
    assert headers == {"traceparent": PARENT, "tracestate": "vendor=1"}
