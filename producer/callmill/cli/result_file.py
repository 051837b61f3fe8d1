"""ResultFile: a file that lines are appended to, and that is cut back to what was recorded of it."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from callmill.cli.folder_sync import sync_folder
from callmill.cli.output_stream import OutputStream
from callmill.errors import InputFileError, OutsideError, UsageError

_BUFFER_BYTES = 1024 * 1024
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


def draft_path(path: Path) -> Path:
    """Return where a new version of a file is written before it replaces the file.

    Beside the path as it was given, where a run keeps its notes: a link may lead to a folder where nothing can be made.
    """
    return path.with_name(f"{path.name}.callmill-draft")


def not_written(path: Path, error: OSError) -> OutsideError:
    """Return the error for a file of a run that cannot be written now."""
    return _unusable(path, "written", error)


class ResultFile:
    """An output file, locked while it is open. Not safe to use from several threads at once.

    Attributes:
        path: As it was given.
        stream: Gets each line, too, once it is on the disk.
        length: In bytes, including what is not synced yet.
        is_new: Whether it did not exist before.

    Raises:
        UsageError: It cannot be written, is no regular file, or another run writes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.is_new = not path.exists()
            if not self.is_new and not stat.S_ISREG(path.stat().st_mode):
                raise UsageError(f"{path}: not a regular file; a run reads its output back, so name a regular file")
            self._file = path.open("ab", buffering=_BUFFER_BYTES)
        except OSError as error:
            raise UsageError(f"{path}: cannot be written: {error.strerror}") from error
        if not _locked(self._file) or not self._is_still_there():
            self._file.close()
            raise UsageError(f"{path}: another `callmill run` writes it; wait for it, or stop it")
        self.length = os.fstat(self._file.fileno()).st_size
        self.unsynced = 0
        self.stream: OutputStream | None = None
        self._unsent: list[bytes] = []

    def cut(self, length: int) -> None:
        """Cut the file to the length that was recorded of it.

        Raises:
            InputFileError: It is shorter than that: somebody else changed it.
            OutsideError: The disk does not take it.
        """
        self.check_length(length)
        try:
            self._file.truncate(length)
        except OSError as error:
            raise not_written(self.path, error) from error
        self.length = length

    def check_length(self, length: int) -> None:
        """Refuse a file that has less than was recorded of it.

        Raises:
            InputFileError: It is shorter than that: somebody else changed it.
        """
        if self.length < length:
            raise InputFileError(
                f"{self.path}: has {self.length:,} bytes, but an earlier run wrote {length:,}: somebody changed it; "
                "start over with --fresh, or name another -o"
            )

    def lines(self) -> Iterator[bytes]:
        """Yield the lines that are in the file.

        Raises:
            OutsideError: The disk does not give it.
        """
        try:
            with self.path.open("rb", buffering=_BUFFER_BYTES) as file:
                yield from file
        except OSError as error:
            raise _unusable(self.path, "read", error) from error

    def remove_made(self) -> None:
        """Remove a file that this run made and left empty; a link that led to nothing does so again."""
        if self.is_new and not self.length:
            with suppress(OSError):
                Path(os.path.realpath(self.path)).unlink()

    def append(self, line: bytes) -> None:
        """Append a line; it is kept for certain after ``sync``.

        Raises:
            OutsideError: The disk does not take it.
        """
        try:
            self._file.write(line)
        except OSError as error:
            raise not_written(self.path, error) from error
        self.length += len(line)
        self.unsynced += len(line)
        if self.stream is not None:
            self._unsent.append(line)

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
            raise not_written(self.path, error) from error
        if self.stream is not None and self._unsent:
            lines, self._unsent = self._unsent, []
            self.stream.write(b"".join(lines))
        return self.length

    def repeat(self, line: bytes) -> None:
        """Write a line that is in the file already to the stream alone, if there is one."""
        if self.stream is not None:
            self.stream.write(line)

    def write_draft(self, lines: Iterable[bytes]) -> int:
        """Write the replacement next to the file, sync it to disk, and return its length.

        Raises:
            OutsideError: It cannot be written; the draft is removed.
        """
        draft = draft_path(self.path)
        try:
            with draft.open("wb", buffering=_BUFFER_BYTES) as file:
                os.fchmod(file.fileno(), stat.S_IMODE(os.fstat(self._file.fileno()).st_mode))
                file.writelines(lines)
                file.flush()
                os.fsync(file.fileno())
                length = file.tell()
            sync_folder(draft.parent)
        except OSError as error:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            raise not_written(draft, error) from error
        return length

    def adopt_draft(self) -> None:
        """Replace the file with the draft; do nothing if that has already happened.

        If the file cannot be renamed over, the draft is copied into it. The draft is removed once the copy is on the
        disk: until then a later call copies it again.

        Raises:
            OutsideError: It cannot; the draft is still there, and only a later call may write the file again.
        """
        draft = draft_path(self.path)
        try:
            if not draft.exists():
                return
            if not self._replaced_by(draft):
                self._copy(draft)
                draft.unlink()
        except OSError as error:
            raise not_written(self.path, error) from error
        self.length = os.fstat(self._file.fileno()).st_size

    def drop_draft(self) -> None:
        """Remove a draft that must not replace the file.

        Raises:
            OutsideError: It cannot be removed.
        """
        draft = draft_path(self.path)
        try:
            draft.unlink(missing_ok=True)
        except OSError as error:
            raise not_written(draft, error) from error

    def close(self) -> None:
        """Close the file; what was not synced may be missing from it."""
        with suppress(OSError):  # what the disk did not take was never recorded as written
            self._file.close()

    def _is_still_there(self) -> bool:
        """Say whether the path still leads to the opened file: another run may just have replaced it."""
        with suppress(FileNotFoundError):
            return os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))
        return False

    def _replaced_by(self, draft: Path) -> bool:
        """Give the draft the file's name, and say whether that was possible, and right."""
        file = draft.open("ab", buffering=_BUFFER_BYTES)
        try:
            ours, new = os.fstat(self._file.fileno()), os.fstat(file.fileno())
            if ours.st_nlink > 1 or (ours.st_uid, ours.st_gid) != (new.st_uid, new.st_gid):
                file.close()
                return False  # its other names would be left with the old lines, or its owner without it
            # Lock it before the rename, so that no other run can take the file in between.
            _locked(file)
            real = Path(os.path.realpath(self.path))
            draft.replace(real)
        except OSError:  # the file is a mount, is on another disk, or in a folder where nothing can be renamed
            file.close()
            return False
        except BaseException:
            file.close()
            raise
        self._file.close()
        self._file = file
        sync_folder(real.parent)
        return True

    def _copy(self, draft: Path) -> None:
        """Overwrite the file with the draft, on the disk when this returns."""
        with draft.open("rb") as source, self.path.open("r+b", buffering=_BUFFER_BYTES) as file:
            shutil.copyfileobj(source, file, _BUFFER_BYTES)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())


def _unusable(path: Path, what: str, error: OSError) -> OutsideError:
    when = "once there is room" if error.errno in _NO_ROOM else "once that is fixed"
    return OutsideError(
        f"{path}: cannot be {what}: {error.strerror}; nothing is lost: run the same command again {when}"
    )


def _locked(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
