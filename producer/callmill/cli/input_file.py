"""The input file: which one it is, and its lines."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

from callmill.errors import InputFileError

LONGEST_LINE_BYTES = 32 * 1024 * 1024
_EDGE_BYTES = 1024 * 1024
_STANDARD_INPUT = Path("-")
_NAME_A_FILE = "write the jobs to a file, so that a run can be continued"
_BOM = b"\xef\xbb\xbf"


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


def _part_of_line(file: BinaryIO, path: Path) -> bytes:
    try:
        return file.readline(LONGEST_LINE_BYTES)
    except OSError as error:
        raise _unreadable(path, error) from error


def _skip_rest(file: BinaryIO, path: Path) -> None:
    while (rest := _part_of_line(file, path)) and not rest.endswith(b"\n"):
        pass
