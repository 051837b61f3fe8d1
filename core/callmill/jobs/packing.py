"""Packing: a job is checked and put into wire form, and jobs are gathered into chunks."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn
from urllib.parse import urlencode

import msgspec
from msgspec import UNSET

from callmill.config.public_api import PublicApi
from callmill.errors import DuplicateIdError, JobError
from callmill.jobs.capacity import Capacity
from callmill.jobs.job import Job
from callmill.jobs.seen_ids import SeenIds
from callmill.jobs.trace_context import TraceContext
from callmill.jobs.wire import Chunk, WireCost, WireJob

FIRST_CHUNK_JOBS, LARGEST_CHUNK_JOBS = 100, 500
_CHUNKS_BEFORE_GROWTH = 20
"""Chunks grow with the batch: a small batch spreads over many workers, a large one costs few messages."""
CHUNK_BYTES = 256 * 1024
"""A chunk is full at this many bytes, before compression, however few its jobs."""

MAX_BODY_BYTES = 16 * 1024 * 1024
_MAX_ID_LENGTH = 512
MAX_MODEL_LENGTH = 200
_JOB_OVERHEAD_BYTES = 32
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_PLAIN_PATH = re.compile(r"/(?!/)[\w\-~/?=&:,+@!$'()*;.]*", re.ASCII)
_API_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie", "x-api-key", "api-key"})
_TRANSPORT_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "connection", "accept-encoding"})
_CACHED_URLS = 4096

_json_encode = msgspec.json.Encoder().encode


class _Lane:
    """What is known of one API while a batch is packed."""

    def __init__(self, name: str, facts: PublicApi | None) -> None:
        self.name = name
        self.facts = facts
        self.capacity = Capacity(facts)
        self._good_urls: set[str] = set()

    def check_url(self, url: str) -> None:
        """Raise ValueError when the API does not cover the URL."""
        if url in self._good_urls:
            return
        url.encode()
        if self.facts is None:
            if not url.startswith(("/", "http://", "https://")):
                raise ValueError(f"{url!r} is neither a path that starts with '/' nor an absolute URL")
        elif not (_PLAIN_PATH.fullmatch(url) and "/." not in url):
            self.facts.resolve(url)
        if len(self._good_urls) < _CACHED_URLS:
            self._good_urls.add(url)


class JobPacker:
    """Checks jobs and puts them into wire form."""

    def __init__(self, find_api: Callable[[str, int], PublicApi | None]) -> None:
        self._find_api = find_api
        self._lanes: dict[str, _Lane] = {}
        self._seen = SeenIds()

    def pack(self, job: Job, position: int) -> tuple[WireJob, int]:
        """Return the job's wire form and its approximate size in bytes.

        Raises:
            JobError: Something about the job is wrong; it names position and field.
        """
        if type(job) is not Job:
            raise JobError(f"is {type(job).__name__}, not callmill.producer.Job", position=position, field="job")
        if type(job.api) is not str:
            _fail(position, "api", f"{job.api!r} is no name of an API")
        lane = self._lanes.get(job.api) or self._lane(job.api, position)
        if type(job.method) is not str or job.method not in _METHODS:
            _fail(position, "method", f"{job.method!r} is not one of {', '.join(sorted(_METHODS))}")
        try:
            lane.check_url(job.url)
        except (ValueError, TypeError, AttributeError) as error:
            raise JobError(str(error), position=position, field="url") from error
        if job.id is not None:
            self._check_id(job.id, position)
        body, content_type = _body(job, position)
        wire = WireJob(
            job.method,
            job.url if job.params is None else _with_params(job, position),
            job.id,
            None if job.headers is None else _headers(job.headers, position),
            body,
            content_type,
            None if job.timeout is None else _timeout(job.timeout, position),
            None if job.tokens is None else _tokens(job.tokens, "tokens", position),
            None if job.idempotency_key is None else _idempotency_key(job.idempotency_key, position),
            None if job.deadline is None else _deadline_ms(job, position),
            _cost(job, position),
        )
        if (problem := lane.capacity.problem(wire)) is not None:
            _fail(position, *problem)
        return wire, _JOB_OVERHEAD_BYTES + len(job.url) + (len(body) if body else 0)

    def note_id(self, job_id: str) -> None:
        """Take note of an id that the batch has already."""
        self._seen.add(job_id)

    @property
    def apis(self) -> list[str]:
        """The APIs that the jobs so far use."""
        return list(self._lanes)

    def _lane(self, name: str, position: int) -> _Lane:
        facts = self._find_api(name, position)
        if facts is None and not _API_NAME.fullmatch(name):  # no profile can have it, and it names keys and queues
            _fail(position, "api", f"{name[:200]!r} is no name of an API: up to 100 letters, digits, '-' and '_'")
        lane = self._lanes[name] = _Lane(name, facts)
        return lane

    def _check_id(self, job_id: str, position: int) -> None:
        if not isinstance(job_id, str) or not 0 < len(job_id) <= _MAX_ID_LENGTH:
            _fail(position, "id", f"an id is a string of 1 to {_MAX_ID_LENGTH} characters; leave it out to get one")
        if not _is_text(job_id):
            _fail(position, "id", f"{job_id!r} holds half a character (a lone surrogate)")
        if not self._seen.add(job_id):
            raise DuplicateIdError(
                f"{job_id!r} was given to an earlier job of this batch", position=position, field="id"
            )


class ChunkBuilder:
    """Gathers the jobs of one API until a chunk is full; ``jobs_before`` is the size of the batch before it."""

    __slots__ = ("_api", "_full_at", "_indexes", "_jobs", "_size_bytes")

    def __init__(self, api: str, jobs_before: int) -> None:
        self._api = api
        self._full_at = min(max(jobs_before // _CHUNKS_BEFORE_GROWTH, FIRST_CHUNK_JOBS), LARGEST_CHUNK_JOBS)
        self._indexes: list[int] = []
        self._jobs: list[WireJob] = []
        self._size_bytes = 0

    def add(self, index: int, job: WireJob, size_bytes: int) -> bool:
        """Add a job; True when the chunk is full now."""
        self._indexes.append(index)
        self._jobs.append(job)
        self._size_bytes += size_bytes
        return len(self._jobs) >= self._full_at or self._size_bytes >= CHUNK_BYTES

    def chunk(self, trace: TraceContext | None = None) -> Chunk:
        """Return what was gathered; ``trace``: the trace that its calls belong to."""
        first, last = self._indexes[0], self._indexes[-1]
        contiguous = last - first == len(self._indexes) - 1
        return Chunk(self._api, first if contiguous else self._indexes, self._jobs, trace)


def _fail(position: int, field: str, message: str) -> NoReturn:
    raise JobError(message, position=position, field=field)


def _body(job: Job, position: int) -> tuple[bytes | None, str | None]:
    data = job.data
    if job.json is not UNSET:
        if data is not None:
            _fail(position, "data", "a job has either json or data, not both")
        content_type: str | None = "application/json"
        try:
            body = _json_encode(job.json)
        except (TypeError, ValueError, msgspec.MsgspecError, OverflowError, RecursionError) as error:
            raise JobError(f"cannot be written as JSON: {error}", position=position, field="json") from error
    elif data is None:
        return None, None
    else:
        body, content_type = _raw_body(data, position)
    if len(body) > MAX_BODY_BYTES:
        _fail(position, "body", f"has {len(body):,} bytes; at most {MAX_BODY_BYTES:,} are carried")
    return body, content_type


def _raw_body(data: Any, position: int) -> tuple[bytes, str | None]:
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data), None
    if isinstance(data, str):
        if not _is_text(data):
            _fail(position, "data", "holds half a character (a lone surrogate)")
        return data.encode(), "text/plain; charset=utf-8"
    if isinstance(data, Mapping):
        return urlencode(data, doseq=True).encode(), "application/x-www-form-urlencoded"
    raise JobError(f"is {type(data).__name__}; give bytes, str or a mapping", position=position, field="data")


def _with_params(job: Job, position: int) -> str:
    try:
        query = urlencode(job.params or {}, doseq=True)
    except (TypeError, ValueError) as error:
        raise JobError(f"cannot be written as a query: {error}", position=position, field="params") from error
    path, hash_mark, fragment = job.url.partition("#")
    joined = f"{path}{'&' if '?' in path else '?'}{query}" if query else path
    return joined + hash_mark + fragment


def _headers(headers: Mapping[str, str], position: int) -> dict[str, str]:
    if not isinstance(headers, Mapping):
        _fail(position, "headers", f"is {type(headers).__name__}; give a mapping")
    for name, value in headers.items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            _fail(position, "headers", f"{name!r} is no header name")
        lowered = name.lower()
        if lowered in _SECRET_HEADERS:
            _fail(position, "headers", f"{name!r} would put a secret into Redis; name it in the API profile's auth")
        if lowered in _TRANSPORT_HEADERS:
            _fail(position, "headers", f"{name!r} is set by the transport; leave it out")
        if not _is_line(value):
            _fail(position, "headers", f"the value of {name!r} is no single line of text")
    return dict(headers)


def _idempotency_key(key: str, position: int) -> str:
    if not _is_line(key) or not key:
        _fail(position, "idempotency_key", f"{key!r} is no single line of text")
    return key


def _is_line(value: object) -> bool:
    return isinstance(value, str) and not ("\r" in value or "\n" in value or "\0" in value) and _is_text(value)


def _is_text(value: str) -> bool:
    """Say whether UTF-8 can carry it: a lone surrogate, as ``json.loads`` lets through, cannot be."""
    try:
        return value.isascii() or bool(value.encode())
    except UnicodeEncodeError:
        return False


def _timeout(timeout: float, position: int) -> float:
    if not isinstance(timeout, (int, float)) or not math.isfinite(timeout) or timeout <= 0:
        _fail(position, "timeout", f"{timeout!r} is no positive number of seconds")
    return float(timeout)


def _tokens(tokens: int, field: str, position: int) -> int:
    if type(tokens) is not int or tokens < 0:
        _fail(position, field, f"{tokens!r} is no number of tokens")
    return tokens


def _cost(job: Job, position: int) -> WireCost | None:
    output_tokens, weight, model = job.output_tokens, job.weight, job.model
    if output_tokens is None and weight == 1 and model is None:
        return None
    if output_tokens is not None:
        _tokens(output_tokens, "output_tokens", position)
        if job.tokens is None or output_tokens > job.tokens:
            _fail(position, "output_tokens", f"{output_tokens:,} are a part of tokens, which is {job.tokens}")
    if type(weight) is not int or weight < 1:
        _fail(position, "weight", f"{weight!r} is no number of requests; a call counts as 1 at least")
    if model is not None and not (_is_line(model) and 0 < len(model) <= MAX_MODEL_LENGTH):
        _fail(position, "model", f"{model!r} is no name of 1 to {MAX_MODEL_LENGTH} characters")
    return WireCost(output_tokens, weight, model)


def _deadline_ms(job: Job, position: int) -> int:
    deadline = job.deadline
    if getattr(deadline, "tzinfo", None) is None:
        _fail(position, "deadline", "must be a datetime with a time zone")
    return int(deadline.timestamp() * 1000) if deadline else 0
