"""One JSON line per call, for checks after a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec import Struct

from callmill.errors import ConfigurationError, OutsideError


class LogLine(Struct, frozen=True):
    """One call, in the order of arrival.

    Attributes:
        time: Unix time of the arrival in seconds.
        method: HTTP method.
        path: Path without the query.
        idempotency_key: The call's ``Idempotency-Key``.
        status: Status of the answer decided on; None where no whole answer was to be given.
        fault: ``reset``, ``hang``, ``not_http``, ``broken_json`` or ``truncated``; None for a whole answer.
        tokens: Tokens that the call asked for.
    """

    time: float
    method: str
    path: str
    idempotency_key: str | None
    status: int | None
    fault: str | None
    tokens: int


class CallLog(Protocol):
    """Where calls are noted."""

    def write(self, line: LogLine) -> None:
        """Note a call."""
        ...

    def flush(self) -> None:
        """Hand to the operating system what was noted."""
        ...

    def close(self) -> None:
        """Flush and close."""
        ...


class NoLog:
    """Notes nothing."""

    def write(self, line: LogLine) -> None:
        """Drop the line."""

    def flush(self) -> None:
        """Nothing is buffered."""

    def close(self) -> None:
        """Nothing is open."""


class FileLog:
    """Appends lines to a file; buffered until ``flush``, so at most the lines since then are lost by a kill.

    Raises:
        ConfigurationError: The file cannot be opened.
        OutsideError: From ``flush`` and ``close``: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigurationError(f"--log {path}: {error.strerror}") from error
        self._encoder = msgspec.json.Encoder()
        self._buffer = bytearray()

    def write(self, line: LogLine) -> None:
        """Buffer a line."""
        self._buffer += self._encoder.encode(line)
        self._buffer += b"\n"

    def flush(self) -> None:
        """Write what is buffered."""
        try:
            while self._buffer:
                del self._buffer[: os.write(self._file, self._buffer)]
        except OSError as error:
            raise OutsideError(f"--log {self._path}: {error.strerror}") from error

    def close(self) -> None:
        """Flush and close the file."""
        try:
            self.flush()
        finally:
            os.close(self._file)
