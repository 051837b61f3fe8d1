"""Packing: a job is checked and put into wire form, and jobs are gathered into chunks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NoReturn

from callmill.config.public_api import API_NAME, PublicApi
from callmill.errors import DuplicateIdError, JobError
from callmill.jobs.bounds import CHUNK_BYTES, MAX_URL_LENGTH
from callmill.jobs.capacity import Capacity
from callmill.jobs.encoding import encode_body, with_params
from callmill.jobs.job import Job
from callmill.jobs.seen_ids import SeenIds
from callmill.jobs.trace_context import TraceContext
from callmill.jobs.wire import Chunk, WireCost, WireJob
from callmill.jobs.wire_checks import problem_of

FIRST_CHUNK_JOBS, LARGEST_CHUNK_JOBS = 100, 500
_CHUNKS_BEFORE_GROWTH = 20
"""Chunks grow with the batch: a small batch spreads over many workers, a large one costs few messages."""

_JOB_OVERHEAD_BYTES, _HEADER_OVERHEAD_BYTES = 32, 16
_PLAIN_PATH = re.compile(r"/(?!/)[\w\-~/?=&:,+@!$'()*;.]*", re.ASCII)
_CACHED_URLS, _CACHED_URL_LENGTH = 4096, 1024


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
        if len(url) > MAX_URL_LENGTH:
            raise ValueError(f"has {len(url):,} characters; at most {MAX_URL_LENGTH:,} are carried. Use the body")
        url.encode()
        if self.facts is None:
            if not url.startswith(("/", "http://", "https://")):
                raise ValueError(f"{url!r} is neither a path that starts with '/' nor an absolute URL")
        elif not (_PLAIN_PATH.fullmatch(url) and "/." not in url):
            self.facts.resolve(url)
        if len(self._good_urls) < _CACHED_URLS and len(url) <= _CACHED_URL_LENGTH:
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
        if type(job.method) is not str:
            _fail(position, "method", f"{job.method!r} is no HTTP method")
        try:
            lane.check_url(job.url)
        except (ValueError, TypeError, AttributeError) as error:
            raise JobError(str(error), position=position, field="url") from error
        body, content_type = encode_body(job, position)
        wire = WireJob(
            job.method,
            job.url if job.params is None else with_params(job.url, job.params, position),
            job.id,
            None if job.headers is None else _headers(job.headers, position),
            body,
            content_type,
            None if job.timeout is None else _seconds(job.timeout),
            job.tokens,
            job.idempotency_key,
            None if job.deadline is None else _deadline_ms(job, position),
            _cost(job),
        )
        problem = problem_of(wire) or lane.capacity.problem(wire)
        if problem is not None:
            _fail(position, *problem)
        if job.id is not None and not self._seen.add(job.id):
            raise DuplicateIdError(
                f"{job.id!r} was given to an earlier job of this batch", position=position, field="id"
            )
        return wire, _size_bytes(wire)

    def note_id(self, job_id: str) -> None:
        """Take note of an id that the batch has already."""
        self._seen.add(job_id)

    @property
    def apis(self) -> list[str]:
        """The APIs that the jobs so far use."""
        return list(self._lanes)

    def _lane(self, name: str, position: int) -> _Lane:
        facts = self._find_api(name, position)
        if facts is None and not API_NAME.fullmatch(name):  # no profile can have it, and it names keys and queues
            _fail(position, "api", f"{name[:200]!r} is no name of an API: up to 100 letters, digits, '-' and '_'")
        lane = self._lanes[name] = _Lane(name, facts)
        return lane


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


def _headers(headers: Mapping[str, str], position: int) -> dict[str, str]:
    if not isinstance(headers, Mapping):
        _fail(position, "headers", f"is {type(headers).__name__}; give a mapping")
    return dict(headers)


def _seconds(timeout: float) -> float:
    try:
        return float(timeout) if isinstance(timeout, (int, float)) else timeout
    except OverflowError:  # the checks refuse it
        return timeout


def _cost(job: Job) -> WireCost | None:
    output_tokens, weight, model = job.output_tokens, job.weight, job.model
    if output_tokens is None and weight == 1 and model is None:
        return None
    return WireCost(output_tokens, weight, model)


def _deadline_ms(job: Job, position: int) -> int:
    deadline = job.deadline
    if getattr(deadline, "tzinfo", None) is None:
        _fail(position, "deadline", "must be a datetime with a time zone")
    return int(deadline.timestamp() * 1000) if deadline else 0


def _size_bytes(job: WireJob) -> int:
    """Return roughly what a job takes of a chunk, and of the memory of who reads it: every field counts."""
    size_bytes = _JOB_OVERHEAD_BYTES + len(job.url)
    if job.body is not None:
        size_bytes += len(job.body)
    if job.id is not None:
        size_bytes += len(job.id)
    if job.headers:
        size_bytes += sum(map(len, job.headers)) + sum(map(len, job.headers.values()))
        size_bytes += _HEADER_OVERHEAD_BYTES * len(job.headers)
    if job.idempotency_key is not None:
        size_bytes += len(job.idempotency_key)
    if job.content_type is not None:
        size_bytes += len(job.content_type)
    return size_bytes
