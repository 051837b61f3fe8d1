"""Lines of the input as jobs: what a line may say, and what is wrong with one that says something else."""

from __future__ import annotations

import binascii
import json
import re
from base64 import b64decode
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, Struct

from callmill.cli.input_file import LONGEST_LINE_BYTES, Line
from callmill.jobs import Job
from callmill.jobs.json_body import NotJsonError, encode_json

EXAMPLE = '{"custom_id": "row-1", "method": "POST", "url": "/v1/items", "body": {"name": "x"}}'
_CUSTOM_ID = re.compile(rb'"custom_id"\s*:\s*("(?:[^"\\]|\\.)*")')
_UTF8_REMEDY = "save the file as UTF-8"
_LARGEST = 2**63 - 1
"""Counts beyond it fit into no field of a job."""

_Count = Annotated[int, Meta(ge=0, le=_LARGEST)]


class BadLineError(ValueError):
    """Why a line is no job.

    Attributes:
        is_of_another_form: Whether the line is JSON, but not of the form that a line has.
    """

    def __init__(self, message: str, *, is_of_another_form: bool = False) -> None:
        super().__init__(message)
        self.is_of_another_form = is_of_another_form


class BareBodies(Struct, frozen=True, kw_only=True):
    """How lines are sent that are bodies and nothing else.

    Attributes:
        url: Where to.
        method: How.
        without: Keys of the bodies that are not sent.
    """

    url: str
    method: str = "POST"
    without: tuple[str, ...] = ()


class _Base64(Struct, forbid_unknown_fields=True):
    base64: str


class _File(Struct, forbid_unknown_fields=True):
    content: str | None = None
    base64: str | None = None
    filename: str | None = None
    content_type: str | None = None


class _JobLine(Struct, forbid_unknown_fields=True):
    custom_id: str
    method: str | None = None
    url: str | None = None
    body: Raw = Raw()
    data: dict[str, Any] | None = None
    content: str | _Base64 | None = None
    content_type: str | None = None
    files: dict[str, str | _File] | None = None
    headers: dict[str, str] | None = None
    api: str | None = None
    tokens: _Count | None = None
    output_tokens: _Count | None = None
    weight: _Count = 1
    model: str | None = None
    params: dict[str, Any] | None = None
    timeout: float | None = None
    idempotency_key: str | None = None


class _CustomId(Struct):
    custom_id: str


class _Form(Struct):
    """What tells a line of our form from a bare body."""

    custom_id: Raw = Raw()
    method: Raw = Raw()
    url: Raw = Raw()


_job_line_decoder = msgspec.json.Decoder(_JobLine)
_form_decoder = msgspec.json.Decoder(_Form)
_raw_decoder = msgspec.json.Decoder(Raw)
_object_decoder = msgspec.json.Decoder(dict[str, Raw])
_custom_id_decoder = msgspec.json.Decoder(_CustomId)


def parse_job(line: Line, default_api: str | None, bare: BareBodies | None = None) -> Job:
    """Return the job that a line describes.

    Args:
        line: The line.
        default_api: The API of lines that name none.
        bare: How lines are sent that are bodies and nothing else, and what other lines take that name no method or URL;
            None: such lines are bad.

    Raises:
        BadLineError: It describes none; the message says why.
    """
    if line.content is None:
        raise BadLineError(f"is longer than {LONGEST_LINE_BYTES:,} bytes")
    try:
        if not line.content.isascii():
            line.content.decode()
        if bare is not None and (body := _bare_body(line.content, bare)) is not None:
            return Job(bare.method, bare.url, api=_api(None, default_api), id=f"line-{line.number}", json=body)
        found = _job_line_decoder.decode(line.content)
    except UnicodeDecodeError as error:
        raise BadLineError(f"is not UTF-8: {error.reason} at byte {error.start + 1}; {_UTF8_REMEDY}") from error
    except msgspec.ValidationError as error:
        raise BadLineError(_lowered(str(error)), is_of_another_form=True) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadLineError(_why_no_json(line.content, error)) from error
    return _job(found, *_target(found, bare), _api(found.api, default_api))


def custom_id_of(line: Line, bare: BareBodies | None = None) -> str | None:
    """Return a line's ``custom_id``, even of a line that is no JSON, as far as it can be read."""
    if line.content is None:
        return None
    try:
        if bare is not None and _is_bare(line.content):
            return f"line-{line.number}"
        return _custom_id_decoder.decode(line.content).custom_id
    except (ValueError, RecursionError):
        match = _CUSTOM_ID.search(line.content)
    try:
        return None if match is None else msgspec.json.decode(match[1], type=str)
    except ValueError:
        return None


def _target(found: _JobLine, bare: BareBodies | None) -> tuple[str, str]:
    method, url = found.method, found.url
    if bare is not None:
        method, url = method or bare.method, url or bare.url
    if method is None or url is None:
        missing = "method" if method is None else "url"
        raise BadLineError(f"object missing required field `{missing}`", is_of_another_form=True)
    return method, url


def _job(found: _JobLine, method: str, url: str, api: str) -> Job:
    json_body, data = _body(found)
    return Job(
        method.upper(),
        url,
        api=api,
        id=found.custom_id,
        headers=_headers(found),
        params=found.params,
        json=json_body,
        data=data,
        files=None if found.files is None else {name: _file(name, file) for name, file in found.files.items()},
        timeout=found.timeout,
        tokens=found.tokens,
        output_tokens=found.output_tokens,
        weight=found.weight,
        model=found.model,
        idempotency_key=found.idempotency_key,
    )


def _api(named: str | None, default: str | None) -> str:
    if (api := named or default) is None:
        raise BadLineError("api is missing, and there is no single API to take: name it, or give --api")
    return api


def _is_bare(content: bytes) -> bool:
    """Say whether a line has none of the keys that make it a line of our form.

    Raises:
        msgspec.DecodeError: It is no JSON.
    """
    try:
        form = _form_decoder.decode(content)
    except msgspec.ValidationError:  # an array, text, a number
        return True
    return not (bytes(form.custom_id) or bytes(form.method) or bytes(form.url))


def _bare_body(content: bytes, bare: BareBodies) -> Raw | None:
    """Return the body that a line is; None for a line of our form."""
    if not _is_bare(content):
        return None
    if bare.without and content.startswith(b"{"):
        members = _object_decoder.decode(content)
        if any(key in members for key in bare.without):
            return Raw(msgspec.json.encode({key: value for key, value in members.items() if key not in bare.without}))
    return _raw_decoder.decode(content)


def _body(found: _JobLine) -> tuple[Any, bytes | str | dict[str, Any] | None]:
    """Return what is sent as JSON, and what is sent as it is or as a form."""
    body = bytes(found.body)
    has_body = body not in {b"", b"null"}
    if found.data is None and found.content is None and found.files is None:
        return Raw(body) if has_body else UNSET, None
    given = [
        name
        for name, is_given in (
            ("body", has_body),
            ("content", found.content is not None),
            ("files" if found.data is None else "data", found.data is not None or found.files is not None),
        )
        if is_given
    ]
    if len(given) > 1:
        raise BadLineError(f"has {' and '.join(given)}: a call has one body")
    if found.content is not None:
        content = found.content
        return UNSET, content if isinstance(content, str) else _decoded(content.base64, "content")
    return Raw(body) if has_body else UNSET, found.data


def _headers(found: _JobLine) -> dict[str, str] | None:
    if found.content_type is None:
        return found.headers
    if found.content is None:
        raise BadLineError("content_type says what content is, and there is no content")
    return {**(found.headers or {}), "Content-Type": found.content_type}


def _file(name: str, file: str | _File) -> tuple[str, bytes] | tuple[str, bytes, str]:
    if isinstance(file, str):
        return name, _utf8(file, name)
    if (file.content is None) == (file.base64 is None):
        raise BadLineError(f"files.{name} needs either content, its text, or base64")
    content = _utf8(file.content or "", name) if file.base64 is None else _decoded(file.base64, f"files.{name}")
    filename = file.filename or name
    return (filename, content) if file.content_type is None else (filename, content, file.content_type)


def _utf8(text: str, name: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise BadLineError(f"files.{name} holds half a character (a lone surrogate)") from error


def _decoded(text: str, name: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadLineError(f"{name}.base64 is no Base64: {_lowered(str(error))}") from error


def _why_no_json(content: bytes, error: Exception) -> str:
    """Say why a line is no JSON; half a character, which Python's parser takes, is named with its path."""
    try:
        encode_json(json.loads(content, parse_constant=_refuse))
    except NotJsonError as problem:
        return f"{problem.path.removeprefix('.') or 'the line'} {problem.message}"
    except (ValueError, RecursionError):
        pass
    return f"is not JSON: {_lowered(str(error).removeprefix('JSON is malformed: '))}"


def _refuse(word: str) -> Any:
    raise ValueError(word)


def _lowered(message: str) -> str:
    return message[:1].lower() + message[1:]
