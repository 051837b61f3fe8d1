"""Served: a running server, and what it says that it answered."""

from __future__ import annotations

import os
import shutil
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from local_nodes import LocalProcess, free_port, until
from msgspec import Struct

_REFUSALS = frozenset({429, 503})
"""What the limiters here say no with; none of the servers fails in any other way."""


class MissingProgramError(Exception):
    """This machine lacks what a server is made of; the message is one line for people."""


def program(name: str, *, package: str) -> str:
    """Return where a program is.

    Raises:
        MissingProgramError: It is not there; ``package`` is Debian's that has it.
    """
    folders = os.environ.get("PATH", "").split(os.pathsep)
    # Debian has servers where only root's PATH leads: in the sbin beside a bin.
    beside = [f"{folder.removesuffix('bin')}sbin" for folder in folders if folder.endswith("/bin")]
    found = shutil.which(name, path=os.pathsep.join([*folders, *beside]))
    if found is None:
        raise MissingProgramError(f"no {name}: Debian's package {package} has it")
    return found


class Call(Struct, frozen=True):
    """One call as the server saw it.

    Attributes:
        path: Its path, which tells the job.
        status: What it was answered.
        began_s: Unix time at which it was there.
        took_s: Seconds until its answer was sent.
    """

    path: str
    status: int
    began_s: float
    took_s: float


class Tally(Struct, frozen=True):
    """What a server saw in one run.

    Attributes:
        calls: All of it.
        refused: How many of them were refused.
        most_refused: The most refusals of one job.
        took_s: Seconds from when the first call was there until the last 200 was sent.
        latencies_s: What calls took that were answered 200.
    """

    calls: int
    refused: int
    most_refused: int
    took_s: float
    latencies_s: tuple[float, ...]

    @property
    def refused_percent(self) -> float:
        """Refusals in percent of calls."""
        return 100 * self.refused / max(1, self.calls)

    @property
    def mean_latency_s(self) -> float:
        """Mean of what calls took that were answered 200."""
        return sum(self.latencies_s) / max(1, len(self.latencies_s))


def tally(calls: Sequence[Call]) -> Tally:
    """Sum up what a server saw."""
    good = [call for call in calls if call.status == 200]
    refusals = Counter(call.path for call in calls if call.status in _REFUSALS)
    first_s = min((call.began_s for call in calls), default=0.0)
    return Tally(
        calls=len(calls),
        refused=refusals.total(),
        most_refused=max(refusals.values(), default=0),
        took_s=max((call.began_s + call.took_s - first_s for call in good), default=0.0),
        latencies_s=tuple(call.took_s for call in good),
    )


class Served(Protocol):
    """A server that runs."""

    @property
    def url(self) -> str:
        """Base URL, without a slash at its end."""
        ...

    def calls(self) -> list[Call]:
        """Return the calls that were answered so far."""
        ...

    def tally(self) -> Tally:
        """Return the sum of them."""
        ...


class ServerProcess(LocalProcess):
    """A server on a free port that writes a line per answer: Unix time of its end, seconds taken, status, path."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.answers = self.folder / "answers.log"

    def ready(self, timeout_s: float = 30.0) -> bool:
        """Wait until somebody listens."""

        def listens() -> bool:
            assert self.status == "running", f"{self.name} ended:\n{self.logs()}"
            return _answers(self.port)

        return bool(until(listens, timeout_s, f"{self.name} ready"))

    def calls(self) -> list[Call]:
        """Return the calls that were answered so far."""
        lines = self.answers.read_text().splitlines() if self.answers.exists() else []
        return [
            Call(path, int(status), float(ended_s) - float(took_s), float(took_s))
            for ended_s, took_s, status, path in map(str.split, lines)
        ]

    def tally(self) -> Tally:
        """Return the sum of them."""
        return tally(self.calls())


class ProgramProcess(ServerProcess):
    """A server whose command line is known when it is made; it gets the port and the file for its lines."""

    def __init__(self, folder: Path, *command: str | Path, then: Sequence[str] = ()) -> None:
        super().__init__(folder)
        self._command = [*map(str, command), str(self.port), str(self.answers), *then]

    def command(self) -> list[str]:
        """Return the program and its arguments."""
        return self._command


@contextmanager
def running(process: ServerProcess) -> Iterator[ServerProcess]:
    """Run a server until the context ends."""
    try:
        process.start().ready()
        yield process
    finally:
        process.teardown()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
