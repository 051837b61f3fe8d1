"""A lock on a file that the kernel gives back when its last holder is gone, however it went."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from callmill.errors import RedisUnavailableError

_POLL_S = 0.01


class FileLock:
    """An exclusive lock, waited for within ``timeout_s``; used as a context manager.

    Attributes:
        descriptor: The open lock file while the lock is held; a child that inherits it holds the lock, too.

    Raises:
        RedisUnavailableError: Somebody else held the lock for all of the time; on entering.
    """

    def __init__(self, path: Path, timeout_s: float, purpose: str) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._purpose = purpose
        self.descriptor = -1

    def __enter__(self) -> Self:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + self._timeout_s
        while not _try_lock(descriptor, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise RedisUnavailableError(
                    f"another process has been {self._purpose} for {self._timeout_s:g} s; see who holds {self._path}"
                )
            time.sleep(_POLL_S)
        self.descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.descriptor)
        self.descriptor = -1


def is_locked(path: Path) -> bool:
    """Say whether someone holds the lock; one that does not exist or that we cannot see counts as free."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
    try:
        # Shared, so that any number of processes may look at once.
        return not _try_lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
