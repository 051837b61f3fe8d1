"""Encoding: what a job's body and its query parameters become on the wire."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from datetime import date, time
from decimal import Decimal
from enum import Enum
from typing import Any, NoReturn
from urllib.parse import urlencode
from uuid import UUID

from msgspec import UNSET

from callmill.errors import JobError
from callmill.jobs.job import Job
from callmill.jobs.json_body import NotJsonError, encode_json

_FORM, _TEXT = "application/x-www-form-urlencoded", "text/plain; charset=utf-8"
_REMEDY = "give text, a number, a date, True, None, or a list of those"
_NESTED = '; APIs that take nested fields have a name for each, such as "{0}[name]"'
_FILE_REMEDY = "give bytes, (filename, bytes), or (filename, bytes, content type)"
_HALF_CHARACTER = "holds half a character (a lone surrogate), which no encoding can carry; remove or replace it"


def encode_body(job: Job, position: int) -> tuple[bytes | None, str | None]:
    """Return a job's body and its content type; None where it has none.

    Raises:
        JobError: The body cannot be written; it names the field, and the path in it.
    """
    if (value := job.json) is UNSET:
        if job.files is not None:
            return _multipart(job.files, job.data, position)
        return (None, None) if job.data is None else _raw_body(job.data, position)
    if job.data is not None or job.files is not None:
        field = "data" if job.files is None else "files"
        _fail(position, field, f"a job has either json or {field}, not both")
    try:
        return encode_json(value), "application/json"
    except NotJsonError as error:
        raise JobError(error.message, position=position, field=f"json{error.path}") from error


def with_params(url: str, params: Mapping[str, Any], position: int) -> str:
    """Return the URL with the parameters at the end of its query.

    Raises:
        JobError: A parameter cannot be written; it is named.
    """
    query = urlencode(_pairs(params, "params", position))
    path, hash_mark, fragment = url.partition("#")
    joined = f"{path}{'&' if '?' in path else '?'}{query}" if query else path
    return joined + hash_mark + fragment


def _fail(position: int, field: str, message: str) -> NoReturn:
    raise JobError(message, position=position, field=field)


def _raw_body(data: Any, position: int) -> tuple[bytes, str | None]:
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data), None
    if isinstance(data, str):
        return _utf8(data, "data", position), _TEXT
    if isinstance(data, Mapping):
        return urlencode(_pairs(data, "data", position)).encode(), _FORM
    _fail(position, "data", f"is {type(data).__name__}; give bytes, str or a mapping")


def _pairs(fields: Any, field: str, position: int) -> list[tuple[bytes, bytes]]:
    """Return the fields as what a query or a form holds; a list repeats its name, and None is left out."""
    if not isinstance(fields, Mapping):
        _fail(position, field, f"is {type(fields).__name__} and cannot be written; give a mapping")
    pairs = []
    for name, value in fields.items():
        key = _utf8(name, field, position) if type(name) is str else _written(name, f"{field}[{name!r:.60}]", position)
        if key is None:
            _fail(position, field, "has None as a name; give text")
        path = f"{field}.{name!s:.60}"
        if type(value) is str:
            pairs.append((key, _utf8(value, path, position)))
        else:
            pairs.extend((key, written) for written in _values(value, path, position))
    return pairs


def _values(value: Any, path: str, position: int) -> Iterator[bytes]:
    if not isinstance(value, list | tuple):
        if (written := _written(value, path, position)) is not None:
            yield written
        return
    for index, inner in enumerate(value):
        if (written := _written(inner, f"{path}[{index}]", position)) is not None:
            yield written


def _written(value: Any, path: str, position: int) -> bytes | None:
    """Return a value's plain text, in JSON's words where it has any; None for None."""
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, str):
        return _utf8(str.__str__(value), path, position)
    if isinstance(value, int | float | Decimal):
        if not math.isfinite(value):
            _fail(position, path, f"{value} is no number that can be sent; give None to leave it out")
        return str(value).encode()
    if isinstance(value, date | time) and value == value:  # noqa: PLR0124 - a pandas.NaT is a date, but not itself
        return value.isoformat().encode()
    return _written_of_others(value, path, position)


def _written_of_others(value: Any, path: str, position: int) -> bytes | None:
    if isinstance(value, UUID):
        return str(value).encode()
    if getattr(value, "shape", None) == () and callable(item := getattr(value, "item", None)):
        dtype = getattr(value, "dtype", None)
        if getattr(dtype, "kind", None) in {"b", "i", "u", "f", "U"}:  # a number of numpy
            return _written(item(), path, position)
    nested = _NESTED.format(path.partition(".")[2]) if isinstance(value, Mapping) else ""
    _fail(
        position, path, f"a value of type {type(value).__name__} cannot be written as {_place(path)}; {_REMEDY}{nested}"
    )


def _place(path: str) -> str:
    return "a query parameter" if path.startswith("params") else "a field of a form"


def _utf8(text: str, path: str, position: int) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        _fail(position, path.encode(errors="backslashreplace").decode(), _HALF_CHARACTER)


def _multipart(files: Any, data: Any, position: int) -> tuple[bytes, str]:
    """Return form fields and files as multipart/form-data; the same job has the same bytes each time."""
    # Imported by those who send files only: it takes as long as half of the rest.
    from urllib3.filepost import encode_multipart_formdata  # noqa: PLC0415

    if data is not None and not isinstance(data, Mapping):
        _fail(position, "data", f"is {type(data).__name__}; beside files, give a mapping of form fields")
    if not isinstance(files, Mapping):
        _fail(position, "files", f"is {type(files).__name__}; give a mapping")
    parts: list[Any] = [(key.decode(), value) for key, value in _pairs(data or {}, "data", position)]
    for name, file in files.items():
        if type(name) is not str:
            _fail(position, "files", f"has {name!r:.60} as a name; give text")
        _utf8(name, "files", position)
        parts.append((name, _file(name, file, position)))
    boundary = hashlib.sha256()
    for part in parts:
        boundary.update(repr(part[1][:1] if isinstance(part[1], tuple) else part).encode())
        boundary.update(part[1][1] if isinstance(part[1], tuple) else b"")
    return encode_multipart_formdata(parts, f"callmill-{boundary.hexdigest()[:32]}")


def _file(name: str, file: Any, position: int) -> tuple[Any, ...]:
    """Return the file as (filename, content), with its content type at the end if it is given."""
    path = f"files.{name}"
    given = file if isinstance(file, tuple | list) else (name, file)
    if not 2 <= len(given) <= 3:
        _fail(position, path, f"has {len(given)} parts; {_FILE_REMEDY}")
    filename, content, *content_type = given
    if isinstance(content, str):
        content = _utf8(content, path, position)
    if not isinstance(content, bytes | bytearray | memoryview):
        _fail(position, path, f"its content is {type(content).__name__}; {_FILE_REMEDY}")
    for text in (filename, *content_type):
        if type(text) is not str or not text or any(mark in text for mark in "\r\n\0"):
            _fail(position, path, f"{text!r:.60} is no single line of text; {_FILE_REMEDY}")
        _utf8(text, path, position)
    return filename, bytes(content), *content_type
