"""However a process with open transports ends, the interpreter exits and never aborts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_server import FaultyServer, faulty_server
from transport_cases import NAMES, answer_by_path

pytestmark = pytest.mark.chaos

HERE = Path(__file__).parent
RACES = {"busy": 3, "thread": 3}
"""Ways to end that race with the library's threads, so once proves little."""


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyServer]:
    """Serve for the whole module."""
    with faulty_server(answer_by_path) as running:
        yield running


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("end", "code"),
    [("closed", 0), ("open", 0), ("failure", 1), ("hanging", 3), ("busy", 3), ("thread", 0), ("abandoned", 0)],
)
def test_exit(name: str, server: FaultyServer, end: str, code: int) -> None:
    """The process ends with its own code, within the time of its calls."""
    command = [sys.executable, str(HERE / "exit_program.py"), name, server.url("").rstrip("/"), end]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(RACES.get(end, 1))
    ]
    for process in running:
        _, complaints = process.communicate(timeout=20)
        assert process.returncode == code, complaints.decode()
