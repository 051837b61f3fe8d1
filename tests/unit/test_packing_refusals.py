"""What a job is refused for: every mistake names the job's position and the field."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from callmill.config.public_api import PublicApi
from callmill.errors import DuplicateIdError, JobError, UnknownApiError
from callmill.jobs import Job
from callmill.jobs.bounds import MAX_BODY_BYTES
from callmill.jobs.packing import ChunkBuilder, JobPacker
from callmill.producer.known_apis import KnownApis

APIS = {
    "openai": PublicApi(
        name="openai",
        base_url="https://api.example.com/v1",
        limits=(
            "500/minute",
            "1000 tokens/minute",
            "9000 tokens/day",
            "auto",
            "8 concurrent",
            "700 input tokens/minute",
        ),
        model="/model",
        models={"small": ("5/minute per model", "400 tokens/minute per model", "90 output tokens/day per model")},
    ),
    "crm": PublicApi(name="crm", base_url="https://crm.example.com"),
}


def packer(apis: dict[str, PublicApi] | None = APIS) -> JobPacker:
    """Return a packer that knows these APIs."""
    return JobPacker(KnownApis(apis, "served by the workers").find)


def job(method: str = "GET", url: str = "/x", api: str = "openai", **fields: Any) -> Job:
    """Return a job, right unless a field says otherwise."""
    return Job(method, url, api=api, **fields)


@dataclass
class Point:
    """A dataclass, which JSON can carry."""

    x: int


RECURSIVE: list[Any] = []
RECURSIVE.append(RECURSIVE)

REFUSALS = {
    "unknown API": ({"api": "opnai"}, "api", "did you mean 'openai'"),
    "quite unknown API": ({"api": "zzz"}, "api", "known: crm, openai"),
    "API of a wrong type": ({"api": 7}, "api", "7"),
    "API that is unhashable": ({"api": ["openai"]}, "api", "no name"),
    "method in lower case": ({"method": "get"}, "method", "'get'"),
    "method that is no token": ({"method": "GE T"}, "method", "'GE T' is no HTTP method"),
    "long method": ({"method": "X" * 33}, "method", "at most 32"),
    "empty method": ({"method": ""}, "method", "'' is no HTTP method"),
    "CONNECT": ({"method": "CONNECT"}, "method", "no call of an API"),
    "TRACE in lower case": ({"method": "trace"}, "method", "no call of an API"),
    "method of a wrong type": ({"method": None}, "method", "None"),
    "method that is unhashable": ({"method": ["GET"]}, "method", "no HTTP method"),
    "foreign host": ({"url": "https://evil.example/v1/x"}, "url", "not under"),
    "foreign path": ({"url": "https://api.example.com/v2/x"}, "url", "not under"),
    "dot segments": ({"url": "/a/../../x"}, "url", "dot segments"),
    "encoded dot segments": ({"url": "/a/%2e%2e/x"}, "url", "dot segments"),
    "relative URL": ({"url": "x"}, "url", "neither a path"),
    "empty URL": ({"url": ""}, "url", "neither a path"),
    "URL with a line break": ({"url": "/x\r\nHost: evil"}, "url", "U+000D"),
    "URL of a wrong type": ({"url": None}, "url", "None"),
    "URL that is unhashable": ({"url": ["/x"]}, "url", "list"),
    "URL with a lone surrogate": ({"url": "/\ud800"}, "url", "surrogate"),
    "long URL": ({"url": "/" + "x" * 65_536}, "url", "65,537 characters; at most 65,536"),
    "long URL for its parameters": ({"params": {"q": "x" * 65_536}}, "url", "at most 65,536"),
    "empty id": ({"id": ""}, "id", "1 to 512"),
    "long id": ({"id": "x" * 513}, "id", "1 to 512"),
    "id of a wrong type": ({"id": 7}, "id", "string"),
    "id with a lone surrogate": ({"id": "\ud800"}, "id", "surrogate"),
    "two bodies": ({"json": {}, "data": b"x"}, "data", "not both"),
    "two bodies, one null": ({"json": None, "data": b"x"}, "data", "not both"),
    "JSON of an object": ({"json": object()}, "json", "cannot be written"),
    "JSON that contains itself": ({"json": RECURSIVE}, "json", "cannot be written"),
    "JSON with a lone surrogate": ({"json": "\ud800"}, "json", "surrogate"),
    "data of a wrong type": ({"data": 7}, "data", "int"),
    "data of a list": ({"data": [1]}, "data", "list"),
    "data with a lone surrogate": ({"data": "\ud800"}, "data", "surrogate"),
    "body too large": ({"data": b"x" * (MAX_BODY_BYTES + 1)}, "body", "16,777,217"),
    "params of a wrong type": ({"params": 7}, "params", "cannot be written"),
    "params with a lone surrogate": ({"params": {"a": "\ud800"}}, "params.a", "surrogate"),
    "header name": ({"headers": {"a b": "c"}}, "headers", "'a b'"),
    "header name of a wrong type": ({"headers": {7: "c"}}, "headers", "7"),
    "header value with a line break": ({"headers": {"a": "b\r\nc: d"}}, "headers", "'a'"),
    "header value of a wrong type": ({"headers": {"a": 7}}, "headers", "'a'"),
    "header value with a lone surrogate": ({"headers": {"a": "\ud800"}}, "headers", "'a'"),
    "header value with a control character": ({"headers": {"a": "b\x01"}}, "headers", "'a'"),
    "header value with DEL": ({"headers": {"a": "\x7f"}}, "headers", "'a'"),
    "header value of 5 MB": ({"headers": {"a": "x" * 5_000_000}}, "headers", "5,000,001 characters; at most 65,536"),
    "many headers": ({"headers": {f"x-{n}": "" for n in range(101)}}, "headers", "101 headers; at most 100"),
    "headers of a wrong type": ({"headers": [("a", "b")]}, "headers", "mapping"),
    "secret header": ({"headers": {"Authorization": "Bearer x"}}, "headers", "secret"),
    "secret header of another kind": ({"headers": {"X-API-Key": "x"}}, "headers", "secret"),
    "header of the transport": ({"headers": {"Content-Length": "5"}}, "headers", "transport"),
    "no time-out": ({"timeout": 0}, "timeout", "0"),
    "negative time-out": ({"timeout": -1.0}, "timeout", "-1.0"),
    "endless time-out": ({"timeout": math.inf}, "timeout", "inf"),
    "time-out that is no number": ({"timeout": math.nan}, "timeout", "nan"),
    "time-out of years": ({"timeout": 1e14}, "timeout", "86,400 s (24 h)"),
    "time-out that no float holds": ({"timeout": 10**400}, "timeout", "86,400 s (24 h)"),
    "time-out of a wrong type": ({"timeout": "5"}, "timeout", "'5'"),
    "negative tokens": ({"tokens": -1}, "tokens", "-1"),
    "half tokens": ({"tokens": 1.5}, "tokens", "1.5"),
    "tokens beyond reason": ({"tokens": 99999999999999999999}, "tokens", "1,000,000,000,000 at most"),
    "tokens of thousands of digits": ({"tokens": -(10**5000)}, "tokens", "int is no number"),
    "weight beyond reason": ({"weight": 2**64}, "weight", "1,000,000,000,000 at most"),
    "output tokens beyond reason": ({"tokens": 4, "output_tokens": 2**64}, "output_tokens", "1,000,000,000,000 at"),
    "truth as tokens": ({"tokens": True}, "tokens", "True"),
    "tokens over the smallest window": ({"tokens": 1001}, "tokens", "1,001 tokens can never pass: the limit '1000 tok"),
    "tokens over a limit, and the remedy": ({"tokens": 1001}, "tokens", "raise the limit in the API's profile"),
    "input tokens over a limit": ({"tokens": 1000, "output_tokens": 299}, "tokens", "701 input tokens can never"),
    "tokens over a limit of the body's model": ({"tokens": 401, "json": {"model": "small"}}, "tokens", "model 'small'"),
    "tokens over a limit of the job's model": ({"tokens": 401, "model": "small"}, "tokens", "'400 tokens/minute per m"),
    "output tokens over a limit": ({"tokens": 99, "output_tokens": 91, "model": "small"}, "output_tokens", "91 output"),
    "output tokens without tokens": ({"output_tokens": 5}, "output_tokens", "part of tokens, which is None"),
    "more output tokens than tokens": ({"tokens": 4, "output_tokens": 5}, "output_tokens", "which is 4"),
    "negative output tokens": ({"tokens": 4, "output_tokens": -5}, "output_tokens", "-5"),
    "no weight": ({"weight": 0}, "weight", "1 at least"),
    "weight of a wrong type": ({"weight": "2"}, "weight", "'2'"),
    "weight over a limit": ({"weight": 501}, "weight", "501 requests can never pass: the limit '500/minute'"),
    "weight over a limit of the model": ({"weight": 6, "model": "small"}, "weight", "'5/minute per model' of model"),
    "empty model": ({"model": ""}, "model", "1 to 200"),
    "long model": ({"model": "m" * 201}, "model", "1 to 200"),
    "model of a wrong type": ({"model": 7}, "model", "7"),
    "idempotency key of a wrong type": ({"idempotency_key": 7}, "idempotency_key", "7"),
    "idempotency key with a line break": ({"idempotency_key": "a\r\nb: c"}, "idempotency_key", "line"),
    "long idempotency key": ({"idempotency_key": "k" * 513}, "idempotency_key", "1 to 512"),
    "deadline without a zone": ({"deadline": datetime(2050, 1, 1)}, "deadline", "time zone"),  # noqa: DTZ001
    "deadline of a wrong type": ({"deadline": 5}, "deadline", "time zone"),
}


@pytest.mark.parametrize(("fields", "field", "words"), REFUSALS.values(), ids=REFUSALS)
def test_refusal(fields, field, words):
    """A wrong job is refused with its position and the field, in words that show what is wrong."""
    checked = packer()
    checked.pack(job(id="good"), 0)
    with pytest.raises(JobError) as raised:
        checked.pack(job(**fields), 41)
    assert (raised.value.position, raised.value.field) == (41, field)
    assert words in str(raised.value)
    assert str(raised.value).startswith(f"job 41: {field}: ")
    str(raised.value).encode()


@pytest.mark.parametrize("thing", [{"method": "GET"}, None, "GET /x", Job])
def test_what_is_no_job(thing):
    """Something else than a Job is refused by its type."""
    with pytest.raises(JobError, match="job 3: job: "):
        packer().pack(thing, 3)


def test_duplicate_id():
    """The second job with an id is refused under a class of its own; jobs without an id never collide."""
    checked = packer()
    checked.pack(job(id="a"), 0)
    checked.pack(job(), 1)
    checked.pack(job(), 2)
    with pytest.raises(DuplicateIdError, match="'a'"):
        checked.pack(job(api="crm", id="a"), 3)


def test_unknown_api_has_its_own_class():
    """An unknown API can be told from other mistakes."""
    with pytest.raises(UnknownApiError):
        packer().pack(job(api="nobody"), 0)


def test_nothing_known_accepts_every_api():
    """Where nobody knows any API, a job waits for a worker that serves its API."""
    wire, _ = packer(None).pack(job(api="whatever"), 0)
    assert wire.url == "/x"


@pytest.mark.parametrize(
    ("fields", "url", "body", "content_type"),
    [
        ({}, "/x", None, None),
        ({"json": None}, "/x", b"null", "application/json"),
        ({"json": {"a": [1, "é"]}}, "/x", '{"a":[1,"é"]}'.encode(), "application/json"),
        ({"json": Point(1)}, "/x", b'{"x":1}', "application/json"),
        ({"data": b"\x00"}, "/x", b"\x00", None),
        ({"data": bytearray(b"a")}, "/x", b"a", None),
        ({"data": "é"}, "/x", "é".encode(), "text/plain; charset=utf-8"),
        ({"data": {"a": [1, 2], "b": "c d"}}, "/x", b"a=1&a=2&b=c+d", "application/x-www-form-urlencoded"),
        ({"params": {"q": "a b", "n": [1, 2]}}, "/x?q=a+b&n=1&n=2", None, None),
        ({"url": "/x?a=1#f", "params": {"b": 2}}, "/x?a=1&b=2#f", None, None),
        ({"params": {}}, "/x", None, None),
        ({"url": "https://api.example.com/v1/y"}, "https://api.example.com/v1/y", None, None),
    ],
)
def test_wire_form(fields, url, body, content_type):
    """Parameters become part of the URL, and a body becomes bytes with its content type."""
    wire, size_bytes = packer().pack(job(**fields), 0)
    assert (wire.url, wire.body, wire.content_type) == (url, body, content_type)
    assert size_bytes >= len(body or b"")


@pytest.mark.parametrize("method", ["PROPFIND", "QUERY", "REPORT", "M-SEARCH", "purge", "X" * 32])
def test_any_method_that_http_knows(method):
    """A method is any token of HTTP, as WebDAV and its like use."""
    assert packer().pack(job(method), 0)[0].method == method


def test_every_field_counts():
    """The size of a job grows with each of its texts, so that chunks of large headers are as small as any."""
    packed = packer()
    plain = packed.pack(job(), 0)[1]
    for fields in (
        {"url": "/" + "x" * 1000},
        {"id": "i" * 500},
        {"headers": {"a": "x" * 1000}},
        {"headers": {f"x-{n}": "" for n in range(100)}},
        {"data": b"x" * 1000},
        {"idempotency_key": "k" * 500},
        {"params": {"q": "x" * 1000}},
    ):
        assert packed.pack(job(**fields), 0)[1] >= plain + 500, fields


def test_chunks_of_large_headers_are_small():
    """A chunk is full when its bytes are, whatever part of its jobs they are in."""
    builder, packed = ChunkBuilder("openai", 0), packer()
    full = [builder.add(n, *packed.pack(job(headers={"a": "x" * 60_000}), n)) for n in range(5)]
    assert full == [False] * 4 + [True]


def test_deadline_is_absolute():
    """A deadline travels as Unix time, whatever its zone."""
    wire, _ = packer().pack(job(deadline=datetime(2050, 1, 1, tzinfo=UTC)), 0)
    assert wire.deadline_ms == 2524608000000


@pytest.mark.parametrize(
    "fields",
    [
        {"tokens": 1000, "output_tokens": 300, "weight": 500},
        {"tokens": 400, "output_tokens": 90, "weight": 5, "model": "small"},
        {"tokens": 401, "model": "large", "json": {"model": "small"}},
        {"tokens": 401, "data": "no json"},
    ],
)
def test_what_just_fits_is_taken(fields):
    """A call that needs no more than the smallest limit that holds for it is accepted, its cost unchanged."""
    wire, _ = packer().pack(job(**fields), 0)
    assert wire.tokens == fields["tokens"]
    if (cost := wire.cost) is not None:
        stated = {"output_tokens": cost.output_tokens, "weight": cost.weight, "model": cost.model}
        assert stated == {"output_tokens": None, "weight": 1, "model": None} | {
            name: fields[name] for name in stated if name in fields
        }


def test_nothing_stated_carries_nothing():
    """A job that says nothing of model, weight or parts of its tokens has no place for them on the wire."""
    assert packer().pack(job(tokens=5), 0)[0].cost is None


@pytest.mark.parametrize("name", ["", "a/b", "a@bulk", "é", "-a"])
def test_name_that_no_profile_can_have(name):
    """Where no API is known a name is still one that a profile could have: it names queues and keys."""
    with pytest.raises(JobError, match="no name of an API"):
        packer(None).pack(job(api=name), 0)
