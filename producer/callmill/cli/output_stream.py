"""OutputStream: standard output, a pipe or a device as the output of a run."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from callmill.cli.input_file import STANDARD_STREAM, names_a_stream
from callmill.errors import OutsideError, UsageError

_STANDARD_OUTPUT = {"-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"}
_GO_ON = "nothing is lost: run the same command again to go on"


def is_output_stream(path: Path) -> bool:
    """Say whether an output is no regular file, which can be read back."""
    with suppress(OSError):  # who opens it finds out
        return names_a_stream(path) or (path.exists() and not path.is_file() and not path.is_dir())
    return False


class OutputStream:
    """A stream that lines are written to once they are kept on the disk, open while the context lasts.

    Raises:
        UsageError: It cannot be opened; on entering. A pipe waits for somebody who reads.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._name = "standard output" if path == STANDARD_STREAM else str(path)

    def __enter__(self) -> Self:
        try:
            self._file = self._open()
        except OSError as error:
            raise UsageError(f"{self._name}: cannot be written: {error.strerror}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # what it did not take comes again
            self._file.close()

    @property
    def is_standard_output(self) -> bool:
        """Whether it is where commands print."""
        return str(self._path) in _STANDARD_OUTPUT

    def is_same_file(self, path: Path) -> bool:
        """Say whether it leads into this file."""
        with suppress(OSError):
            return os.path.samestat(os.fstat(self._file.fileno()), path.stat())
        return False

    def write(self, lines: bytes) -> None:
        """Write lines, all of them when this returns.

        Raises:
            OutsideError: Nobody reads any more, or there is no room.
        """
        try:
            self._file.write(lines)
            self._file.flush()
        except BrokenPipeError as error:
            raise OutsideError(f"{self._name}: its reader is gone; {_GO_ON}") from error
        except OSError as error:
            raise OutsideError(f"{self._name}: cannot be written: {error.strerror}; {_GO_ON}") from error

    def _open(self) -> BinaryIO:
        if self._path != STANDARD_STREAM:
            return self._path.open("wb")
        if sys.stdout is None:  # where it is closed
            raise UsageError("standard output is closed: name a file with -o")
        # A file of its own: what Python's could not write it would complain of at the end.
        return os.fdopen(os.dup(sys.stdout.fileno()), "wb")
