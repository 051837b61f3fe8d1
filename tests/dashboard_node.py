"""The dashboard as a process of its own, as users start it."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from local_nodes import LocalProcess


class DashboardProcess(LocalProcess):
    """``callmill dashboard`` on a free port.

    Args:
        folder: Where it runs.
        settings: What it finds in its environment.
        arguments: Its further options.
    """

    ready_prompt = "Dashboard on "

    def __init__(self, folder: Path, settings: Mapping[str, str], *arguments: str) -> None:
        super().__init__(folder)
        self._settings = settings
        self._arguments = arguments

    def command(self) -> list[str]:
        """Return the command line."""
        return [sys.executable, "-m", "callmill.cli", "dashboard", "--port", "0", *self._arguments]

    def environment(self) -> dict[str, str]:
        """Return where Redis is, and what else is set."""
        return {**self._settings, "PYTHONUNBUFFERED": "1"}

    @property
    def url(self) -> str:
        """Where it listens."""
        found = re.search(r"Dashboard on (\S+)", self.logs())
        assert found is not None, self.logs()
        return found[1]
