"""A worker whose Redis holds chunks that nobody's ``submit`` wrote: they end, nothing of them goes out, others run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from faulty_server import FaultyServer, faulty_server
from hostile_chunks import MiB, RawChunk, bomb, chunk_of, framed, packed_jobs, submit_raw, tiny_objects, wide_headers
from local_nodes import WorkerProcess, until, write_profiles

from callmill.jobs.trace_context import TraceContext
from callmill.jobs.wire import Chunk, WireJob, encode_chunk
from callmill.producer import Batch, Client, Job, Outcome

CLAIMS = 50_000_000


@dataclass
class Site:
    """A worker, its API, and a client."""

    redis_url: str
    client: Client
    server: FaultyServer
    worker: WorkerProcess

    def end(self, *chunks: RawChunk) -> list[Outcome]:
        """Write a batch past all checks and return its outcomes once it has ended, beside a good one."""
        good = self.client.submit(Job("POST", f"/good/{n}", api="api", json=n) for n in range(30))
        raw: Batch = self.client.batch(submit_raw(self.redis_url, chunks))
        raw.wait(60)
        assert good.wait(60).succeeded == 30
        assert self.worker.status == "running", self.worker.logs()
        return list(raw.outcomes())

    def seen(self, *parts: str) -> list[str]:
        """Return the targets of the requests with these in their target."""
        return [seen.target for seen in self.server.requests if all(part in seen.target for part in parts)]


@pytest.fixture(scope="module")
def site(redis_server, tmp_path_factory) -> Iterator[Site]:
    """Start a worker for the module."""
    folder = tmp_path_factory.mktemp("hostile")

    async def answer(exchange) -> None:
        await exchange.answer()

    with faulty_server(answer) as server, Client(redis_server.url) as client:
        lines = [f'base_url = "{server.url("").rstrip("/")}"', 'auth = { header = { X-Key = "env:HOSTILE_KEY" } }']
        apis = write_profiles(folder / "apis.toml", {"api": lines})
        os.environ["HOSTILE_KEY"] = "a-secret-key"
        worker = WorkerProcess(folder, redis_server.url, apis, {}).start()
        try:
            worker.ready()
            yield Site(redis_server.url, client, server, worker)
        finally:
            del os.environ["HOSTILE_KEY"]
            worker.teardown()


CORRUPT = {
    "a bomb": bomb(256 * MiB),
    "more jobs than a chunk may have": RawChunk(framed(packed_jobs(), CLAIMS)[:12], CLAIMS),
    "more jobs than it says": RawChunk(framed(packed_jobs(["GET", "/"], ["GET", "/"]), 1)),
    "millions of the smallest jobs": tiny_objects(3_000_000, b"\x92\xa0\xa0"),
    "millions of positions": RawChunk(framed(b"\x93\xa3api\xdd\x00\x2d\xc6\xc0" + b"\x00" * 3_000_000 + b"\x90", 1)),
    "an array of 4 billion": RawChunk(framed(b"\x93\xa3api\x00\xdd\xff\xff\xff\xff", 1)),
    "nesting without end": RawChunk(framed(b"\x93\xa3api\x00" + b"\x91" * 100_000, 1)),
    "a negative position": RawChunk(framed(b"\x93\xa3api\xff\x91\x92\xa3GET\xa1/", 1)),
    "30 MiB in Redis": RawChunk(framed(packed_jobs(["POST", "/", None, None, os.urandom(30 * MiB)]), 1)),
}


def test_corrupt_chunks_end_beside_good_ones(site):
    """Whatever a payload claims or unpacks to, it fails as corrupt, at once and cheaply, and a good batch completes."""
    outcomes = site.end(*CORRUPT.values())
    assert {outcome.error and outcome.error.code for outcome in outcomes} == {"corrupt"}
    assert len(outcomes) == len(CORRUPT)


INVALID = {
    "Host": WireJob("GET", "/evil", headers={"Host": "evil.example"}),
    "Transfer-Encoding": WireJob("POST", "/evil", headers={"transfer-encoding": "chunked"}, body=b"0\r\n\r\n"),
    "Content-Length": WireJob("POST", "/evil", headers={"Content-Length": "0"}, body=b"GET /evil"),
    "Authorization": WireJob("GET", "/evil", headers={"Authorization": "Bearer x"}),
    "CONNECT": WireJob("CONNECT", "/evil"),
    "method with a line": WireJob("GET /evil HTTP/1.1\r\nx: y\r\n\r\nGET", "/"),
    "header with a line": WireJob("GET", "/evil", headers={"a": "b\r\nHost: evil.example"}),
    "content type with a line": WireJob("POST", "/evil", body=b"", content_type="text/plain\r\na: b"),
    "key with a line": WireJob("POST", "/evil", idempotency_key="a\r\nb: c"),
    "endless": WireJob("GET", "/evil", timeout_s=1e14),
    "no time": WireJob("GET", "/evil", timeout_s=float("nan")),
    "tokens": WireJob("GET", "/evil", tokens=2**64 - 1),
    "long URL": WireJob("GET", "/evil" + "x" * 70_000),
    "long id": WireJob("GET", "/evil", id="i" * 600),
    "101 headers": WireJob("GET", "/evil", headers={f"x-{n}": "" for n in range(101)}),
    "large headers": WireJob("GET", "/evil", headers={"a": "x" * 70_000}),
    "wrong types": WireJob("GET", "/evil", headers={"a": 7}),  # type: ignore[dict-item]
    "late": WireJob("GET", "/evil", deadline_ms=2**60),
}


def test_jobs_that_submit_refuses_are_not_sent(site):
    """Each wrong job of a raw chunk fails as invalid and is never sent; the right ones between them are."""
    jobs = [job for bad in INVALID.values() for job in (bad, WireJob("GET", "/beside"))]
    outcomes = sorted(site.end(chunk_of(*jobs)), key=lambda outcome: outcome.index)
    bad, beside = outcomes[::2], outcomes[1::2]
    assert {name: outcome.error and outcome.error.code for name, outcome in zip(INVALID, bad, strict=True)} == (
        dict.fromkeys(INVALID, "invalid")
    )
    assert all(outcome.ok for outcome in beside)
    assert site.seen("evil") == []
    assert len(site.seen("/beside")) == len(INVALID)


def test_a_trace_that_is_none_is_left_out(site):
    """A chunk whose trace would break the head of its requests is called without it."""
    trace = TraceContext("00-a\r\nHost: evil", "")
    raw = RawChunk(encode_chunk(Chunk("api", 0, [WireJob("GET", "/traced")], trace)))
    assert [outcome.ok for outcome in site.end(raw)] == [True]
    (request,) = [seen for seen in site.server.requests if seen.target == "/traced"]
    assert "traceparent" not in request.headers
    assert request.headers["host"].startswith("127.0.0.1")


def test_the_largest_that_submit_takes_is_run(site):
    """Chunks of the largest bodies, and of as many headers as jobs may have, are run like any other."""
    large = [chunk_of(WireJob("POST", "/large", body=os.urandom(16 * MiB - n))) for n in range(3)]
    outcomes = site.end(*large, *[wide_headers(100, 100)] * 2)
    assert sum(outcome.ok for outcome in outcomes) == len(outcomes) == 3 + 200
    until(lambda: len(site.seen("/large")) == 3)
