"""SpooledInput: a stream as the input of a run, kept in a file, so that the run can be continued.

A stream is read to its end before the run begins. Who repeats the command gives the same stream again, or an empty
one: another one is refused, not ignored.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from callmill.cli.folder_sync import sync_folder
from callmill.cli.input_file import STANDARD_STREAM, open_any, reading
from callmill.cli.result_file import not_written
from callmill.errors import InputFileError

_PART_BYTES = 1024 * 1024


class SpooledInput:
    """What was read from a stream, in a file that is gone when it is closed, or this process is.

    Args:
        stream: The path of the stream; ``-``: standard input.
        content: The file.
        sha256: Of all of it.
    """

    def __init__(self, stream: Path, content: IO[bytes], sha256: str) -> None:
        self._stream, self._content, self.sha256 = stream, content, sha256

    @property
    def is_empty(self) -> bool:
        """Whether there was nothing in the stream."""
        return not self._content.tell()

    def keep(self, path: Path, *, to_go_on: bool) -> None:
        """Put it where the run reads it.

        Args:
            path: Where to.
            to_go_on: Whether an earlier run goes on, with what it has there.

        Raises:
            InputFileError: Another stream was the earlier run's.
            OutsideError: The disk does not take it.
        """
        if to_go_on and path.exists():
            if not self.is_empty and self.sha256 != _sha256(path):
                raise InputFileError(
                    f"{_name(self._stream)}: is not what this run was started with: give the same again, or nothing "
                    "(< /dev/null); or start over with --fresh"
                )
            return
        draft = path.with_name(f"{path.name}.new")
        self._content.seek(0)
        try:
            with draft.open("wb") as file:
                shutil.copyfileobj(self._content, file, _PART_BYTES)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
            sync_folder(path.parent)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise not_written(path, error) from error


def spool_path(output: Path) -> Path:
    """Return where the input of the run with this output is kept, if it is a stream."""
    return output.with_name(f"{output.name}.callmill-input")


@contextmanager
def spooled(stream: Path, folder: Path) -> Iterator[SpooledInput]:
    """Read a stream to its end into a file in the folder, where there must be room for it.

    Raises:
        InputFileError: It cannot be read.
        OutsideError: The disk does not take it.
    """
    try:
        content = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed below
    except OSError as error:
        raise not_written(folder, error) from error
    with content:
        sha256 = hashlib.sha256()
        with open_any(stream) as file:
            while part := _part(file, stream):
                sha256.update(part)
                _write(content, part, folder)
        yield SpooledInput(stream, content, sha256.hexdigest())


def _part(file: IO[bytes], stream: Path) -> bytes:
    with reading(Path(_name(stream))):
        return file.read(_PART_BYTES)


def _write(content: IO[bytes], part: bytes, folder: Path) -> None:
    try:
        content.write(part)
    except OSError as error:
        raise not_written(folder, error) from error


def _name(stream: Path) -> str:
    return "standard input" if stream == STANDARD_STREAM else str(stream)


def _sha256(path: Path) -> str:
    with reading(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
