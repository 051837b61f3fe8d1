"""ResultFile: a file that lines are appended to, and that is cut back to what was recorded of it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from callmill.errors import InputFileError, OutsideError, UsageError

_BUFFER_BYTES = 1024 * 1024
_WHAT_NOW = "nothing is lost: run the same command again when there is room"


class ResultFile:
    """An output file, locked while it is open. Not safe to use from several threads at once.

    Raises:
        UsageError: It cannot be written, or another run writes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("ab", buffering=_BUFFER_BYTES)
        except OSError as error:
            raise UsageError(f"{path}: cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UsageError(f"{path}: another `callmill run` writes it; wait for it, or stop it") from None
        self.length = path.stat().st_size
        self.unsynced = 0

    def cut(self, length: int) -> None:
        """Cut the file to the length that was recorded of it.

        Raises:
            InputFileError: It is shorter than that: somebody else changed it.
        """
        if self.length < length:
            raise InputFileError(
                f"{self.path}: has {self.length:,} bytes, but an earlier run wrote {length:,}: somebody changed it; "
                "begin anew with --fresh, or name another -o"
            )
        self._file.truncate(length)
        self.length = length

    def lines(self) -> Iterator[bytes]:
        """Yield the lines that are in the file."""
        with self.path.open("rb", buffering=_BUFFER_BYTES) as file:
            yield from file

    def append(self, line: bytes) -> None:
        """Append a line; it is kept for certain after ``sync``.

        Raises:
            OutsideError: The disk does not take it.
        """
        try:
            self._file.write(line)
        except OSError as error:
            raise OutsideError(f"{self.path}: cannot be written: {error.strerror}; {_WHAT_NOW}") from error
        self.length += len(line)
        self.unsynced += len(line)

    def sync(self) -> int:
        """Bring everything to the disk and return the length.

        Raises:
            OutsideError: The disk does not take it.
        """
        try:
            if self.unsynced:
                self._file.flush()
                os.fsync(self._file.fileno())
                self.unsynced = 0
        except OSError as error:
            raise OutsideError(f"{self.path}: cannot be written: {error.strerror}; {_WHAT_NOW}") from error
        return self.length

    def close(self) -> None:
        """Close the file; what was not synced may be missing from it."""
        with suppress(OSError):  # what the disk did not take was never recorded as written
            self._file.close()
