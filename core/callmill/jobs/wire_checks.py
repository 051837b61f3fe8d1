"""Checks of a job in wire form. ``submit`` refuses what they refuse, and a worker does not send it.

Whoever may write to Redis can write a chunk without ``submit``, so a worker takes nothing in it for granted. Nearly
every job has a common method, an ordinary URL and few headers: what is known to be right is looked up.
"""

from __future__ import annotations

import re
from typing import TypeAlias

from callmill.jobs.bounds import (
    EARLIEST_MS,
    LATEST_MS,
    MAX_AMOUNT,
    MAX_BODY_BYTES,
    MAX_CONTENT_TYPE_LENGTH,
    MAX_HEADERS,
    MAX_HEADERS_LENGTH,
    MAX_ID_LENGTH,
    MAX_KEY_LENGTH,
    MAX_METHOD_LENGTH,
    MAX_MODEL_LENGTH,
    MAX_TIMEOUT_S,
    MAX_URL_LENGTH,
)
from callmill.jobs.wire import WireCost, WireJob

Problem: TypeAlias = tuple[str, str]
"""The field of ``Job`` that is wrong, and why."""

_COMMON_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
"""What RFC 9110 does not allow in a header's value; a tab is allowed."""

_NOT_CALLS = frozenset({"CONNECT", "TRACE"})
_SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie", "x-api-key", "api-key"})
_TRANSPORT_HEADERS = frozenset(
    {
        "host", "content-length", "transfer-encoding", "connection", "accept-encoding", "te", "trailer", "upgrade",
        "keep-alive", "proxy-connection", "http2-settings", "expect",
    }
)  # fmt: skip

_good_names: set[str] = set()
_good_types: set[str] = set()
_MOST_REMEMBERED, _REMEMBERED_LENGTH = 1024, 128
"""Header names and content types are few, and the same for many jobs."""


def problem_of(job: WireJob) -> Problem | None:
    """Return what is wrong with a job, whatever types its fields have; None: it may be sent."""
    return None if _is_plain(job) else _problem_of(job)


def _is_plain(job: WireJob) -> bool:
    """Say at one look whether a job is right, if it says what most do and no more."""
    job_id, body, content_type, tokens = job.id, job.body, job.content_type, job.tokens
    if job.headers is not None or job.timeout_s is not None or job.idempotency_key is not None:
        return False
    return (
        job.method in _COMMON_METHODS
        and len(job.url) <= MAX_URL_LENGTH
        and (job_id is None or (type(job_id) is str and 0 < len(job_id) <= MAX_ID_LENGTH and job_id.isascii()))
        and (body is None or len(body) <= MAX_BODY_BYTES)
        and (content_type is None or content_type in _good_types)
        and (tokens is None or (type(tokens) is int and 0 <= tokens <= MAX_AMOUNT))
        and job.deadline_ms is None
        and job.cost is None
    )


def _problem_of(job: WireJob) -> Problem | None:
    if job.method not in _COMMON_METHODS and (problem := _method_problem(job.method)):
        return "method", problem
    if len(job.url) > MAX_URL_LENGTH:
        return "url", f"the URL has {len(job.url):,} characters; at most {MAX_URL_LENGTH:,} are carried. Use the body"
    if job.id is not None and (problem := _id_problem(job.id)):
        return "id", problem
    if job.headers and (problem := _headers_problem(job.headers)):
        return "headers", problem
    return _body_problem(job) or _numbers_problem(job)


def invalid_jobs(jobs: list[WireJob]) -> dict[int, Problem]:
    """Return what is wrong with jobs, by their place in the list; most often nothing."""
    return {
        at: problem for at, job in enumerate(jobs) if not _is_plain(job) and (problem := _problem_of(job)) is not None
    }


def _body_problem(job: WireJob) -> Problem | None:
    if job.body is not None and len(job.body) > MAX_BODY_BYTES:
        return "body", f"has {len(job.body):,} bytes; at most {MAX_BODY_BYTES:,} are carried"
    content_type = job.content_type
    if content_type is None or content_type in _good_types:
        return None
    if not is_line(content_type) or len(content_type) > MAX_CONTENT_TYPE_LENGTH:
        what = f"one line of at most {MAX_CONTENT_TYPE_LENGTH:,} characters"
        return "content_type", f"{_shown(content_type)} is no content type: {what}"
    _remember(content_type, _good_types)
    return None


def _numbers_problem(job: WireJob) -> Problem | None:
    timeout_s, tokens, key, deadline_ms = job.timeout_s, job.tokens, job.idempotency_key, job.deadline_ms
    if timeout_s is not None and (problem := _timeout_problem(timeout_s)):
        return "timeout", problem
    if tokens is not None and (problem := _tokens_problem(tokens)):
        return "tokens", problem
    if key is not None and (problem := _key_problem(key)):
        return "idempotency_key", problem
    if deadline_ms is not None and not EARLIEST_MS <= deadline_ms <= LATEST_MS:
        return "deadline", f"{deadline_ms} ms is no time of the years 1 to 9999"
    return None if job.cost is None else _cost_problem(job.cost, tokens)


def _method_problem(method: str) -> str | None:
    if type(method) is not str or len(method) > MAX_METHOD_LENGTH or not _TOKEN.fullmatch(method):
        return f"{_shown(method)} is no HTTP method: at most {MAX_METHOD_LENGTH} letters, digits and !#$%&'*+-.^_`|~"
    if method.upper() in _NOT_CALLS:
        return f"{method!r} is no call of an API; use another method"
    if method.upper() in _COMMON_METHODS:
        return f"{method!r} is written in capitals: {method.upper()}"
    return None


def _id_problem(job_id: str) -> str | None:
    if type(job_id) is not str or not 0 < len(job_id) <= MAX_ID_LENGTH:
        return f"an id is a string of 1 to {MAX_ID_LENGTH} characters; leave it out to get one"
    return None if is_text(job_id) else f"{job_id!r} holds half a character (a lone surrogate)"


def _headers_problem(headers: dict[str, str]) -> str | None:
    if len(headers) > MAX_HEADERS:
        return f"{len(headers):,} headers; at most {MAX_HEADERS} are carried"
    length = 0
    for name, value in headers.items():
        if name not in _good_names and (problem := _name_problem(name)):
            return problem
        if type(value) is not str:
            return f"the value of {name!r} is {type(value).__name__}; give a string"
        if not (value.isascii() and value.isprintable()) and not is_line(value):
            return f"the value of {name!r} is no single line of text"
        length += len(name) + len(value)
    if length > MAX_HEADERS_LENGTH:
        return f"the headers have {length:,} characters; at most {MAX_HEADERS_LENGTH:,} are carried. Use the body"
    return None


def _name_problem(name: str) -> str | None:
    if type(name) is not str or not _TOKEN.fullmatch(name):
        return f"{_shown(name)} is no header name"
    lowered = name.lower()
    if lowered in _SECRET_HEADERS:
        return f"{name!r} would put a secret into Redis; name it in the API profile's auth"
    if lowered in _TRANSPORT_HEADERS:
        return f"{name!r} is set by the transport; leave it out"
    _remember(name, _good_names)
    return None


def _timeout_problem(timeout_s: float) -> str | None:
    if not isinstance(timeout_s, (int, float)) or not timeout_s > 0 or timeout_s == float("inf"):
        return f"{_shown(timeout_s)} is no positive number of seconds"
    if timeout_s > MAX_TIMEOUT_S:
        return f"more than a call may take, which is {MAX_TIMEOUT_S:,.0f} s (24 h) at most"
    return None


def _tokens_problem(tokens: int) -> str | None:
    if type(tokens) is not int or tokens < 0:
        return f"{_shown(tokens)} is no number of tokens"
    return f"more tokens than a call can cost, which is {MAX_AMOUNT:,} at most" if tokens > MAX_AMOUNT else None


def _key_problem(key: str) -> str | None:
    if not is_line(key) or not 0 < len(key) <= MAX_KEY_LENGTH:
        return f"{_shown(key)} is no single line of text of 1 to {MAX_KEY_LENGTH} characters"
    return None


def _cost_problem(cost: WireCost, tokens: int | None) -> Problem | None:
    output_tokens, weight, model = cost.output_tokens, cost.weight, cost.model
    if output_tokens is not None:
        if problem := _tokens_problem(output_tokens):
            return "output_tokens", problem
        if tokens is None or output_tokens > tokens:
            return "output_tokens", f"{output_tokens:,} are a part of tokens, which is {tokens}"
    if type(weight) is not int or weight < 1:
        return "weight", f"{_shown(weight)} is no number of requests; a call counts as 1 at least"
    if weight > MAX_AMOUNT:
        return "weight", f"more requests than a call can count as, which is {MAX_AMOUNT:,} at most"
    if model is not None and not (is_line(model) and 0 < len(model) <= MAX_MODEL_LENGTH):
        return "model", f"{_shown(model)} is no name of 1 to {MAX_MODEL_LENGTH} characters"
    return None


def is_line(value: object) -> bool:
    """Say whether a value is one line of text, as a header may carry it."""
    if not isinstance(value, str):
        return False
    return (value.isascii() and value.isprintable()) or (not _CONTROL.search(value) and is_text(value))


def is_text(value: str) -> bool:
    """Say whether UTF-8 can carry it: a lone surrogate, as ``json.loads`` lets through, cannot be."""
    try:
        return value.isascii() or bool(value.encode())
    except UnicodeEncodeError:
        return False


def _remember(good: str, known: set[str]) -> None:
    if len(known) < _MOST_REMEMBERED and len(good) <= _REMEMBERED_LENGTH:
        known.add(good)


def _shown(value: object) -> str:
    """Return a value for a message: its first characters, in ASCII."""
    try:
        shown = ascii(value[:80] if isinstance(value, str) else value)
    except ValueError:  # an integer of thousands of digits
        shown = type(value).__name__
    return shown if len(shown) <= 100 else f"{shown[:97]}..."
