"""A simulator in a process of its own, for tests, the demo and benchmarks."""

from __future__ import annotations

import http.client
import re
import selectors
import subprocess
import sys
import time
from typing import IO, Any, Self, TypeVar
from urllib.parse import urlsplit

import msgspec

from callmill.errors import OutsideError, UsageError, WaitTimeoutError
from callmill.simulator.options import SimulatorOptions

_READY = re.compile(rb"Simulator on (\S+)\n")
_Shape = TypeVar("_Shape")
_NAMES = {"limits": "limit", "error_statuses": "error-status", "hang_s": "hang"}


class SimulatorProcess:
    """Run ``python -m callmill.simulator`` as a child while the context lasts.

    Raises:
        OutsideError: The child ended before it was ready; its own message is on standard error.
        WaitTimeoutError: It was not ready within ``ready_timeout_s`` seconds.
    """

    def __init__(self, options: SimulatorOptions | None = None, *, ready_timeout_s: float = 30.0) -> None:
        self._options = options or SimulatorOptions()
        self._ready_timeout_s = ready_timeout_s
        self._child: subprocess.Popen[bytes] | None = None
        self._url = ""

    @property
    def url(self) -> str:
        """Base URL, without a slash at its end."""
        return self._url

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._running().pid

    def start(self) -> Self:
        """Start the child and wait until it accepts connections."""
        command = [sys.executable, "-m", "callmill.simulator", *command_line(self._options)]
        self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)  # noqa: S603
        try:
            self._url = self._await_ready(self._child)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self, *, timeout_s: float = 10.0) -> int:
        """End the child and return its exit code; 0 after a clean end. Idempotent.

        A child that does not end in time is killed.
        """
        child = self._running()
        child.terminate()
        try:
            return child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            child.kill()
            return child.wait()
        finally:
            if child.stdout is not None:
                child.stdout.close()

    def stats(self) -> dict[str, Any]:
        """Return what ``GET /stats`` answers; what the log buffered is in its file afterwards."""
        return self._exchange("GET", "/stats", dict[str, Any])

    def reset(self) -> None:
        """Start all counts, limits and draws anew."""
        self._exchange("POST", "/reset", dict[str, bool])

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            raise UsageError("the simulator was not started; use it as a context manager or call start()")
        return self._child

    def _await_ready(self, child: subprocess.Popen[bytes]) -> str:
        assert child.stdout is not None  # noqa: S101 - PIPE was asked for
        deadline = time.monotonic() + self._ready_timeout_s
        output = b""
        while (match := _READY.search(output)) is None:
            chunk = _read_some(child.stdout, deadline - time.monotonic())
            if chunk is None:
                raise WaitTimeoutError(f"the simulator was not ready within {self._ready_timeout_s:g} s")
            if not chunk:
                raise OutsideError(f"the simulator ended with exit code {child.wait()} before it was ready")
            output += chunk
        return match[1].decode()

    def _exchange(self, method: str, path: str, shape: type[_Shape]) -> _Shape:
        connection = http.client.HTTPConnection(urlsplit(self._url).netloc, timeout=30)
        try:
            connection.request(method, path)
            return msgspec.json.decode(connection.getresponse().read(), type=shape)
        finally:
            connection.close()


def command_line(options: SimulatorOptions) -> list[str]:
    """Return the options as arguments of the command."""
    arguments: list[str] = []
    for field in msgspec.structs.fields(options):
        value = getattr(options, field.name)
        if value is None:
            continue
        name = _NAMES.get(field.name, field.name.replace("_", "-"))
        text = f"{value}s" if field.name == "hang_s" else None
        items = value if isinstance(value, tuple) else (value,)
        arguments += [f"--{name}={text or item}" for item in items]
    return arguments


def _read_some(stream: IO[bytes], timeout_s: float) -> bytes | None:
    """Return what arrives within the time, b"" at the end of the stream, None when nothing came."""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        if not selector.select(max(0.0, timeout_s)):
            return None
    return stream.read1(4096)  # type: ignore[attr-defined, no-any-return] # Popen's pipe is a BufferedReader
