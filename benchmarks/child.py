"""Child processes of a benchmark: started with a log, awaited with a bound, always ended."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

HERE = Path(__file__).parent
_END_S = 40.0
"""Longer than a worker's grace."""


class Child:
    """A server or worker that runs while the context lasts; what it says goes into ``log``."""

    def __init__(self, command: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None) -> None:
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(env or {}),
                cwd=log.parent,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def await_ready(self, is_ready: Callable[[], bool], *, timeout_s: float = 60.0) -> None:
        """Wait until it is ready.

        Raises:
            RuntimeError: It ended, or was not ready in time; the message has the end of its log.
        """
        deadline = time.monotonic() + timeout_s
        while not is_ready():
            if (code := self._process.poll()) is not None:
                raise RuntimeError(f"{self._process.args!r} ended with {code}:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self._process.args!r} is not ready after {timeout_s:g} s:\n{self.log_tail()}")
            time.sleep(0.02)

    def log_tail(self) -> str:
        """Return the end of what it said."""
        return self._log.read_text(errors="replace")[-2_000:]

    def kill(self) -> None:
        """End it without a warning, as kill -9 does."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End it, by force when it does not go. Idempotent."""
        self._process.terminate()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()


def run_script(module: str, *arguments: object, env: Mapping[str, str] | None = None) -> Any:
    """Run a module of this folder as a program of its own and return the JSON that it prints."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=HERE, env=environment(env or {}), stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr.decode()[-2_000:]}")
    return msgspec.json.decode(done.stdout)


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """Return our environment without any Callmill setting of the user's, and with ``more``."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("CALLMILL_")}
    path = os.pathsep.join([str(HERE), *filter(None, [ours.get("PYTHONPATH")])])
    return {**ours, "PYTHONPATH": path, **more}


def free_port() -> int:
    """Return a TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(port: int) -> bool:
    """Say whether somebody listens on a port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
