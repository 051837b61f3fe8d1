"""The input file: which one it is, and its lines."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

from callmill.cli.packed_input import DamagedError, LineSource, unpacked
from callmill.errors import InputFileError

LONGEST_LINE_BYTES = 32 * 1024 * 1024
_EDGE_BYTES = 1024 * 1024
STANDARD_STREAM = Path("-")
_DEVICES, _SHARED_MEMORY = ("/dev/", "/proc/"), "/dev/shm/"  # noqa: S108 - nothing is made there
_BOM = b"\xef\xbb\xbf"


class InputIdentity(Struct, frozen=True, kw_only=True):
    """What tells an input file from another, or from itself after a change.

    Attributes:
        path: Absolute path, as ``path_text`` has it.
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
        with open_input(path) as file, reading(path):
            status = path.stat()
            head = file.read(_EDGE_BYTES)
            file.seek(max(0, status.st_size - _EDGE_BYTES))
            tail = file.read(_EDGE_BYTES)
        return cls(
            path=path_text(path.absolute()),
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


def path_text(path: Path) -> str:
    """Return a path as text, also one whose bytes are no text: it can be written and compared, but not opened."""
    return os.fsencode(path).decode(errors="backslashreplace")


class Line(Struct, frozen=True):
    """A line of the input: its number, from 1, and its bytes; None when it is too long to be read."""

    number: int
    content: bytes | None


def open_input(path: Path) -> BinaryIO:
    """Open an input file.

    Raises:
        InputFileError: It cannot be read, or is no regular file, which no run could be continued from.
    """
    with reading(path):
        if path != STANDARD_STREAM and stat.S_ISREG(path.stat().st_mode):
            return path.open("rb", buffering=_EDGE_BYTES)
    raise InputFileError(f"{path}: is not a regular file; write the jobs to a file")


def open_any(path: Path) -> BinaryIO:
    """Open an input that is read once, from its beginning to its end: a file, a pipe, or ``-``, standard input.

    Raises:
        InputFileError: It cannot be read.
    """
    if path == STANDARD_STREAM:
        if sys.stdin is None:  # where it is closed
            raise InputFileError("standard input is closed: name a file")
        return sys.stdin.buffer
    with reading(path):
        return path.open("rb", buffering=_EDGE_BYTES)


def is_stream(path: Path) -> bool:
    """Say whether an input can be read once only, or is another file in each process; asked without opening it.

    Raises:
        InputFileError: It cannot be looked at.
    """
    if path == STANDARD_STREAM or names_a_stream(path):
        return True
    with reading(path):
        return not stat.S_ISREG(path.stat().st_mode)


def names_a_stream(path: Path) -> bool:
    """Say whether a path is one of the system's names for open files and devices, or ``-``."""
    absolute = os.path.abspath(path)  # noqa: PTH100 - that of pathlib keeps ".."
    return path == STANDARD_STREAM or (absolute.startswith(_DEVICES) and not absolute.startswith(_SHARED_MEMORY))


def read_lines(path: Path, open_file: Callable[[Path], BinaryIO] = open_input) -> Iterator[Line]:
    """Yield every line that is not blank, of a file in UTF-8 or UTF-16, plain or compressed.

    Raises:
        InputFileError: The file cannot be read.
    """
    number = 0
    with open_file(path) as file, reading(path):
        source = unpacked(file)
        while content := source.readline(LONGEST_LINE_BYTES):
            number += 1
            if len(content) >= LONGEST_LINE_BYTES and not content.endswith(b"\n"):
                _skip_rest(source)
                yield Line(number, None)
                continue
            if number == 1:
                content = content.removeprefix(_BOM)
            if content := content.strip():
                yield Line(number, content)


def first_part(path: Path, size: int) -> bytes:
    """Return the beginning of what ``read_lines`` reads.

    Raises:
        InputFileError: The file cannot be read.
    """
    with open_input(path) as file, reading(path):
        return unpacked(file).read(size)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn errors while the path is read into those that name it.

    Raises:
        InputFileError: It cannot be read; on leaving the context.
    """
    try:
        yield
    except InputFileError as error:
        message = str(error)
        raise InputFileError(message if message.startswith(str(path)) else f"{path}: {message}") from error
    except DamagedError as error:
        raise InputFileError(f"{path}: its data are damaged or end too early: {error}") from error
    except OSError as error:
        raise InputFileError(f"{path}: cannot be read: {error.strerror or error}") from error


def _skip_rest(source: LineSource) -> None:
    while (rest := source.readline(LONGEST_LINE_BYTES)) and not rest.endswith(b"\n"):
        pass
