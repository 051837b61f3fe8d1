"""LocalFleet: processes of ours on this machine, started, watched, started again when they die, and stopped.

Which they are may change while it runs: what is not wanted any more is asked to end, as everything is at the end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from msgspec import Struct

from callmill.cli import parent_watch

CONFIGURATION_EXIT = 2
"""What a program of ours ends with when its configuration is wrong: starting it again would not help."""

_POLL_S = 0.1
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.5, 30.0
_STABLE_AFTER_S = 30.0
KILL_AFTER_GRACE_S = 15.0
_NO_OTHERS: Mapping[str, str] = {}


class Program(Struct, frozen=True):
    """A sub-command of callmill that runs as a child.

    Attributes:
        name: What messages call it.
        arguments: The sub-command and its arguments.
        vital: Whether the fleet has failed when its configuration is wrong.
    """

    name: str
    arguments: tuple[str, ...]
    vital: bool = True


class LocalFleet:
    """Children that run until ``stop``; they end by themselves when this process is killed.

    Args:
        programs: What to run.
        grace_s: Seconds that a child gets to end by itself.
        say: Takes each line that a child writes, and each event, in threads of its own.
        log_level: What children log at least, unless the environment says so already.
        settings: Environment variables that differ for the children.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        *,
        grace_s: float,
        say: Callable[[str], None],
        log_level: str | None = None,
        settings: Mapping[str, str] = _NO_OTHERS,
    ) -> None:
        self._say = say
        self._grace_s = grace_s
        self._stop = threading.Event()
        self._change = threading.RLock()
        environment = parent_watch.environment() | dict(settings)
        if log_level is not None:
            environment.setdefault("CALLMILL_LOG_LEVEL", log_level)
        self._environment = environment
        self._children = [_Child(program, environment, say) for program in programs]
        self._leaving: list[_Child] = []
        self._watcher = threading.Thread(target=self._watch, name="callmill-fleet", daemon=True)

    def start(self) -> None:
        """Start every child and watch over them."""
        for child in self._children:
            child.start()
        self._watcher.start()

    def run(self, programs: Sequence[Program]) -> None:
        """Run these from now on: start those that are new, by their names, and let the others end as at a stop."""
        names = {program.name for program in programs}
        with self._change:
            if self._stop.is_set():
                return
            leaving = [child for child in self._children if child.program.name not in names]
            known = {child.program.name for child in self._children}
            new = [_Child(each, self._environment, self._say) for each in programs if each.name not in known]
            self._children = [child for child in self._children if child not in leaving] + new
            self._leaving += leaving
            for child in leaving:
                child.leave(self._grace_s + KILL_AFTER_GRACE_S)
            for child in new:
                child.start()

    @property
    def names(self) -> list[str]:
        """Names of the programs that it runs, without those that are to end."""
        with self._change:
            return [child.program.name for child in self._children]

    @property
    def failure(self) -> str | None:
        """Why the fleet cannot work; None when it can."""
        with self._change:
            return next((child.failure for child in self._children if child.failure and child.program.vital), None)

    @property
    def pids(self) -> list[int]:
        """Process ids of the children that live, those included that are to end."""
        with self._change:
            children = [*self._children, *self._leaving]
            return [child.process.pid for child in children if child.process is not None]

    def stop(self) -> None:
        """Ask every child to end and wait until it has; kill what has not after the grace, or at Ctrl-C. Idempotent."""
        self._stop.set()
        if self._watcher.is_alive():
            self._watcher.join()
        for child in self._children:  # those that are to end know it: told twice, a worker drops its calls
            child.signal(signal.SIGTERM)
        deadline = time.monotonic() + self._grace_s + KILL_AFTER_GRACE_S
        while any(child.running for child in (*self._children, *self._leaving)):
            try:
                time.sleep(_POLL_S / 2)
            except KeyboardInterrupt:
                deadline = 0.0
            if time.monotonic() > deadline:
                for child in (*self._children, *self._leaving):
                    child.signal(signal.SIGKILL)
        for child in (*self._children, *self._leaving):
            child.forget()

    def _watch(self) -> None:
        while not self._stop.wait(_POLL_S):
            with self._change:
                for child in self._children:
                    child.look_after()
                self._leaving = [child for child in self._leaving if child.still_leaves()]


class _Child:
    """One child: its process, and when it may be started again."""

    def __init__(self, program: Program, environment: Mapping[str, str], say: Callable[[str], None]) -> None:
        self.program = program
        self._environment = environment
        self.process: subprocess.Popen[str] | None = None
        self.failure: str | None = None
        self._say = say
        self._deaths = 0
        self._started_s = 0.0
        self._start_at_s: float | None = None
        self._killed_at_s = 0.0
        self._last_line = ""

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        self._started_s, self._start_at_s = time.monotonic(), None
        self.process = subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, "-m", "callmill.cli", *self.program.arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=self._environment,
            # The terminal's Ctrl-C is for us; we tell the children.
            start_new_session=True,
        )
        self._forwarder = threading.Thread(target=self._forward, args=(self.process,), daemon=True)
        self._forwarder.start()

    def look_after(self) -> None:
        """Note that the child died, and start it again when its time has come."""
        now_s = time.monotonic()
        if self._start_at_s is not None and now_s >= self._start_at_s:
            self.start()
        if self.process is None or (code := self.process.poll()) is None:
            return
        pid, self.process = self.process.pid, None
        if code == CONFIGURATION_EXIT:
            self._forwarder.join(1)  # its last line says what is wrong
            self.failure = self._last_line or f"{self.program.name} found its configuration wrong"
            self._say(f"{self.program.name} is not started again: its configuration is wrong")
            return
        self._deaths = 1 if now_s - self._started_s > _STABLE_AFTER_S else self._deaths + 1
        delay_s = min(_FIRST_DELAY_S * 2 ** (self._deaths - 1), _LONGEST_DELAY_S)
        self._start_at_s = now_s + delay_s
        self._say(f"{self.program.name} (process {pid}) {_died(code)}; starting it again in {delay_s:g} s")

    def leave(self, within_s: float) -> None:
        """Ask the child to end, and never start it again."""
        self._start_at_s, self._killed_at_s = None, time.monotonic() + within_s
        self.signal(signal.SIGTERM)

    def still_leaves(self) -> bool:
        """Say whether a child that was asked to end still runs; kill one that takes too long."""
        if self.process is None:
            return False
        if self.running:
            if time.monotonic() > self._killed_at_s:
                self.signal(signal.SIGKILL)
            return True
        self._say(f"{self.program.name} (process {self.process.pid}) {_died(self.process.returncode)}, as asked")
        return False

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, to its whole session when it is the last one."""
        if not self.running or self.process is None:
            return
        with suppress(ProcessLookupError):
            if number is signal.SIGKILL:
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)

    def forget(self) -> None:
        """Take note that the child has ended for good."""
        self.process = None

    def _forward(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None  # noqa: S101 - PIPE was asked for
        with process.stdout:
            for line in process.stdout:
                if text := line.rstrip():
                    self._last_line = text
                    self._say(text)


def _died(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def workers(number: int) -> list[Program]:
    """Return that many worker programs."""
    return [Program(f"worker {n}", ("worker",)) for n in range(1, number + 1)]
