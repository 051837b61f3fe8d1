"""The input file: which one it is, and its lines as jobs."""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import UNSET, Raw, Struct

from callmill.errors import InputFileError
from callmill.jobs import Job

LONGEST_LINE_BYTES = 32 * 1024 * 1024
_EDGE_BYTES = 1024 * 1024
_STANDARD_INPUT = Path("-")
_NAME_A_FILE = "write the jobs to a file, so that a run can be continued"
_BOM = b"\xef\xbb\xbf"
_CUSTOM_ID = re.compile(rb'"custom_id"\s*:\s*("(?:[^"\\]|\\.)*")')


class InputIdentity(Struct, frozen=True, kw_only=True):
    """What tells an input file from another, or from itself after a change.

    Attributes:
        path: Absolute path.
        size: In bytes.
        mtime_ns: When it was last written.
        head_sha256: Of its first MiB.
        tail_sha256: Of its last MiB.
    """

    path: str
    size: int
    mtime_ns: int
    head_sha256: str
    tail_sha256: str

    @classmethod
    def of(cls, path: Path) -> InputIdentity:
        """Look at a file.

        Raises:
            InputFileError: It cannot be read, or is no regular file.
        """
        with open_input(path) as file, _reading(path):
            status = path.stat()
            head = file.read(_EDGE_BYTES)
            file.seek(max(0, status.st_size - _EDGE_BYTES))
            tail = file.read(_EDGE_BYTES)
        return cls(
            path=str(path.absolute()),
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
            head_sha256=hashlib.sha256(head).hexdigest(),
            tail_sha256=hashlib.sha256(tail).hexdigest(),
        )

    def difference(self, now: InputIdentity) -> str | None:
        """Say what is different now; None when nothing is."""
        if self.path != now.path:
            return f"it was {self.path}"
        if self.size != now.size:
            return f"it had {self.size:,} bytes and has {now.size:,} now"
        if (self.head_sha256, self.tail_sha256) != (now.head_sha256, now.tail_sha256):
            return "its content is different now"
        return None if self.mtime_ns == now.mtime_ns else "it was written to since then"


class Line(Struct, frozen=True):
    """A line of the input: its number, from 1, and its bytes; None when it is too long to be read."""

    number: int
    content: bytes | None


class BadLineError(ValueError):
    """Why a line is no job."""


class _JobLine(Struct, forbid_unknown_fields=True):
    custom_id: str
    method: str
    url: str
    body: Raw = Raw()
    headers: dict[str, str] | None = None
    api: str | None = None
    tokens: int | None = None
    output_tokens: int | None = None
    weight: int = 1
    model: str | None = None
    params: dict[str, str | int | float | bool | list[str | int | float | bool]] | None = None
    timeout: float | None = None
    idempotency_key: str | None = None


class _CustomId(Struct):
    custom_id: str


_job_line_decoder = msgspec.json.Decoder(_JobLine)
_custom_id_decoder = msgspec.json.Decoder(_CustomId)


def open_input(path: Path) -> BinaryIO:
    """Open an input file.

    Raises:
        InputFileError: It cannot be read, or is no regular file, which no run could be continued from.
    """
    if path == _STANDARD_INPUT:
        raise InputFileError(f"standard input cannot be read: {_NAME_A_FILE}")
    with _reading(path):
        if stat.S_ISREG(path.stat().st_mode):  # asked before it is opened: a pipe waits for somebody who writes
            return path.open("rb", buffering=_EDGE_BYTES)
    raise InputFileError(f"{path}: is not a regular file; {_NAME_A_FILE}")


def _unreadable(path: Path, error: OSError) -> InputFileError:
    return InputFileError(f"{path}: cannot be read: {error.strerror}")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unreadable(path, error) from error


def read_lines(path: Path) -> Iterator[Line]:
    """Yield every line that is not blank.

    Raises:
        InputFileError: The file cannot be read.
    """
    number = 0
    with open_input(path) as file:
        while content := _part_of_line(file, path):
            number += 1
            if len(content) == LONGEST_LINE_BYTES and not content.endswith(b"\n"):
                _skip_rest(file, path)
                yield Line(number, None)
                continue
            if number == 1:
                content = content.removeprefix(_BOM)
            if content := content.strip():
                yield Line(number, content)


def parse_job(line: Line, default_api: str | None) -> Job:
    """Return the job that a line describes.

    Raises:
        BadLineError: It describes none; the message says why.
    """
    if line.content is None:
        raise BadLineError(f"is longer than {LONGEST_LINE_BYTES:,} bytes")
    try:
        if not line.content.isascii():
            line.content.decode()
        found = _job_line_decoder.decode(line.content)
    except UnicodeDecodeError as error:
        raise BadLineError(f"is not UTF-8: {error.reason} at byte {error.start + 1}") from error
    except msgspec.ValidationError as error:
        raise BadLineError(_lowered(str(error))) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadLineError(f"is not JSON: {_lowered(str(error).removeprefix('JSON is malformed: '))}") from error
    api = found.api or default_api
    if api is None:
        raise BadLineError("api is missing, and there is no single API to take: name it, or give --api")
    body = bytes(found.body)
    return Job(
        found.method.upper(),
        found.url,
        api=api,
        id=found.custom_id,
        headers=found.headers,
        params=found.params,
        json=UNSET if body in {b"", b"null"} else Raw(body),
        timeout=found.timeout,
        tokens=found.tokens,
        output_tokens=found.output_tokens,
        weight=found.weight,
        model=found.model,
        idempotency_key=found.idempotency_key,
    )


def custom_id_of(line: Line) -> str | None:
    """Return a line's ``custom_id``, even of a line that is no JSON, as far as it can be read."""
    if line.content is None:
        return None
    try:
        return _custom_id_decoder.decode(line.content).custom_id
    except (ValueError, RecursionError):
        match = _CUSTOM_ID.search(line.content)
    try:
        return None if match is None else msgspec.json.decode(match[1], type=str)
    except ValueError:
        return None


def _part_of_line(file: BinaryIO, path: Path) -> bytes:
    try:
        return file.readline(LONGEST_LINE_BYTES)
    except OSError as error:
        raise _unreadable(path, error) from error


def _skip_rest(file: BinaryIO, path: Path) -> None:
    while (rest := _part_of_line(file, path)) and not rest.endswith(b"\n"):
        pass


def _lowered(message: str) -> str:
    return message[:1].lower() + message[1:]
