"""Several calling processes over one limit, and the judge of when their calls started."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from limits_caller import RECORD, Caller, Report
from limits_kit import worst_window
from local_nodes import until

PROGRAM = Path(__file__).parent / "limits_caller.py"
LIMIT = 200
LIMITS = (f"{LIMIT}/second",)
FULL = 0.75 * LIMIT
"""Slots granted in a second that prove the full rate: the guard takes some of it, and they are granted in blocks."""


class Process:
    """One calling process."""

    def __init__(self, told: Caller) -> None:
        self.log = Path(told.log)
        command = [sys.executable, PROGRAM, msgspec.json.encode(told).decode()]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ready(self) -> None:
        """Wait until its limiter runs."""
        assert self.child.stdout is not None
        assert self.child.stdout.readline() == "ready\n"

    def go(self) -> None:
        """Let it call."""
        assert self.child.stdin is not None
        self.child.stdin.write("\n")
        self.child.stdin.flush()

    def starts(self) -> list[float]:
        """Return when its calls started, so far."""
        return [at for at, granted in self._records() if granted < 0]

    def granted(self, begin: float, end: float) -> float:
        """Return how many slots it was granted in this time."""
        samples = [(at, granted) for at, granted in self._records() if granted >= 0]
        first, last = (max((granted for at, granted in samples if at <= moment), default=0) for moment in (begin, end))
        return last - first

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop it meanwhile, as an overloaded host would."""
        self.child.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.child.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill it and wait for its end."""
        self.child.kill()
        self.child.communicate()

    def _records(self) -> list[tuple[float, float]]:
        if not self.log.exists():
            return []
        raw = self.log.read_bytes()
        return list(RECORD.iter_unpack(raw[: len(raw) // RECORD.size * RECORD.size]))

    def report(self) -> Report:
        """Let it end and return what it tells."""
        out, _ = self.child.communicate(timeout=20)
        assert self.child.returncode == 0
        return msgspec.json.decode(out.splitlines()[-1], type=Report)


@dataclass(frozen=True)
class Verdict:
    """When calls started, on all processes together."""

    starts: Sequence[float]
    processes: Sequence[Process]

    def worst(self, window_s: float = 1.0) -> int:
        """Return the most starts in any window of this length."""
        return worst_window([round(at * 1e6) for at in self.starts], round(window_s * 1e6))

    def within(self, begin: float, end: float) -> int:
        """Return how many calls started in this time."""
        return sum(begin <= at < end for at in self.starts)

    def granted(self, begin: float, end: float) -> float:
        """Return how many slots were granted in this time, whether or not a busy host let them pass."""
        return sum(process.granted(begin, end) for process in self.processes)

    def first_after(self, moment: float) -> float:
        """Return the seconds from a moment to the next start."""
        return min(at for at in self.starts if at >= moment) - moment

    def most_in_flight(self, call_s: float) -> int:
        """Return the most calls that the server was at work on at once."""
        changes = sorted([(at + call_s, -1) for at in self.starts] + [(at, 1) for at in self.starts])
        now, most = 0, 0
        for _, change in changes:
            now += change
            most = max(most, now)
        return most


class Callers:
    """Processes that call until the test ends them."""

    def __init__(self, processes: Sequence[Process]) -> None:
        self.processes = processes

    def verdict(self) -> Verdict:
        """Return what was logged so far."""
        return Verdict(sorted(at for process in self.processes for at in process.starts()), self.processes)

    def more(self, count: int) -> None:
        """Wait for this many further starts."""
        before = len(self.verdict().starts)
        until(lambda: len(self.verdict().starts) >= before + count, 20, f"{count} starts after {before}")

    def run_until(self, moment: float) -> None:
        """Let them call until this moment of the monotonic clock."""
        time.sleep(max(0.0, moment - time.monotonic()))

    def end(self) -> Verdict:
        """End those that live; no call of theirs may have failed."""
        reports = [process.report() for process in self.processes if process.child.poll() is None]
        assert [error for report in reports for error in report.errors] == []
        return self.verdict()


@contextmanager
def calling(
    url: str, folder: Path, *, limits: Sequence[str] = LIMITS, count: int = 3, call_s: float = 0.0, lease_s: float = 0.0
) -> Iterator[Callers]:
    """Let processes call together; all are in full swing when they are handed out."""
    processes = [
        Process(
            Caller(
                url=url,
                name=f"w{index}",
                limits=list(limits),
                log=str(folder / f"starts-{index}"),
                call_s=call_s,
                lease_s=lease_s,
            )
        )
        for index in range(count)
    ]
    try:
        for process in processes:
            process.ready()
        for process in processes:
            process.go()
        callers = Callers(processes)
        until(lambda: all(len(process.starts()) >= 3 for process in processes), 20, "calls of every process")
        callers.run_until(min(process.starts()[0] for process in processes) + 1.0)
        yield callers
    finally:
        for process in processes:
            process.kill()
