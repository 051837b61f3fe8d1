"""A command in a terminal of a given size, as its user sees it."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping
from typing import Self

_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_HOME = "\x1b[H"
# The terminal that the leader of a session without one opens becomes the session's: Ctrl-C and resizing reach it.
_TAKE_TERMINAL = "import os, sys; os.close(os.open(os.ttyname(0), os.O_RDWR)); os.execv(sys.argv[1], sys.argv[1:])"


def _environment() -> dict[str, str]:
    # Where readline has told the size of another terminal, it would hide that of this one.
    inherited = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
    return inherited | {"TERM": "xterm-256color"}


class Terminal:
    """Runs ``callmill`` with some arguments in a pseudo-terminal."""

    def __init__(self, *arguments: str, columns: int, lines: int, environment: Mapping[str, str]) -> None:
        self._ours, theirs = pty.openpty()
        self.before = termios.tcgetattr(theirs)
        self.resize(columns, lines)
        self.output = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._process = subprocess.Popen(
            [sys.executable, "-ISc", _TAKE_TERMINAL, sys.executable, "-m", "callmill.cli", *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**_environment(), **environment},
            start_new_session=True,
        )
        self._theirs = theirs

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._theirs)
        os.close(self._ours)

    def resize(self, columns: int, lines: int) -> None:
        """Give the window another size; whoever is in front is told by a signal."""
        self._columns, self._lines = columns, lines
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press_ctrl_c(self) -> None:
        """Press Ctrl-C."""
        self.write(b"\x03")

    def write(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._ours, keys)

    def wait(self, timeout_s: float) -> int:
        """Wait for the end and return the exit code."""
        deadline_s = time.monotonic() + timeout_s
        while self._process.poll() is None and time.monotonic() < deadline_s:
            self._read()
        self._read()
        return self._process.wait(0)

    def attributes(self) -> list[object]:
        """Return how the terminal is set."""
        return termios.tcgetattr(self._theirs)

    def screen(self) -> list[str]:
        """Return the lines of the latest screen that is there as a whole and has the size of the window; else none."""
        for frame in reversed(self.output.split(_HOME)[-2:]):
            shown = _SEQUENCE.sub("", frame).replace("\r", "").split("\n")
            if len(shown) == self._lines and len(shown[-1]) == self._columns:
                return shown
        return []

    def until(self, shown: Callable[[list[str]], object], timeout_s: float = 60.0) -> list[str]:
        """Return the first screen of which that holds."""
        deadline_s = time.monotonic() + timeout_s
        while not shown(self.screen()):
            assert time.monotonic() < deadline_s, f"{self._columns} x {self._lines}: {self.output[-4000:]!r}"
            assert self._process.poll() is None, self.output
            self._read()
        return self.screen()

    def until_written(self, text: str, timeout_s: float = 60.0) -> None:
        """Wait until a text was written, of a program that draws no screens."""
        deadline_s = time.monotonic() + timeout_s
        while text not in self.output:
            assert time.monotonic() < deadline_s, self.output
            assert self._process.poll() is None, self.output
            self._read()

    def _read(self) -> None:
        if select.select([self._ours], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):  # the other end is closed
                self.output += self._decoder.decode(os.read(self._ours, 65536))
