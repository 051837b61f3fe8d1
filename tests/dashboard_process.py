"""The dashboard as a process of this machine."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from local_nodes import LocalProcess


class DashboardProcess(LocalProcess):
    """``callmill dashboard`` on a free port, which finds its Redis by what the variables say."""

    ready_prompt = "Dashboard on "

    def __init__(self, folder: Path, variables: Mapping[str, object], *arguments: str) -> None:
        super().__init__(folder)
        self._variables = variables
        self._arguments = arguments

    def command(self) -> list[str]:
        """Return the command line."""
        return [sys.executable, "-m", "callmill.cli", "dashboard", "--port", "0", *self._arguments]

    def environment(self) -> dict[str, str]:
        """Return where Redis is."""
        variables = {f"CALLMILL_{name.upper()}": str(value) for name, value in self._variables.items()}
        return {"PYTHONUNBUFFERED": "1", **variables}

    @property
    def url(self) -> str:
        """Where it listens."""
        return self._said("Dashboard on")

    @property
    def metrics_url(self) -> str:
        """Where it answers Prometheus."""
        return self._said("Metrics on")

    def _said(self, what: str) -> str:
        found = re.findall(rf"{what} (\S+)", self.logs())
        assert found, f"never said {what!r}:\n{self.logs()}"
        url: str = found[-1]
        return url
