"""Limiters in Python: slowapi, our simulator, an API that only refuses for a while, and one that becomes slow."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from callmill.config.limit_spec import parse_limit
from callmill.simulator import SimulatorOptions, SimulatorProcess
from callmill.simulator.call_log import LogLine
from callmill.simulator.options import EnforcerKind, HeaderStyle
from real_limiters.nginx import RAW_API
from real_limiters.served import Call, MissingProgramError, ProgramProcess, Served, Tally, running, tally

_SLOWAPI_API = Path(__file__).parent / "programs/slowapi_api.py"


@contextmanager
def slowapi(folder: Path, *, limit: str, strategy: str = "moving-window", headers: bool = False) -> Iterator[Served]:
    """Enforce ``10/second``, say, in a window of this strategy."""
    if missing := [name for name in ("slowapi", "starlette", "uvicorn") if importlib.util.find_spec(name) is None]:
        raise MissingProgramError(f"no {', no '.join(missing)}: make setup installs them")
    arguments = [limit, strategy, *(["headers"] if headers else [])]
    with running(ProgramProcess(folder, sys.executable, _SLOWAPI_API, then=arguments)) as api:
        yield api


@contextmanager
def refusing(folder: Path, *, seconds: float, retry_after: str) -> Iterator[Served]:
    """Answer 429 with this ``Retry-After`` for so long from the first call on, then 200."""
    with running(ProgramProcess(folder, sys.executable, RAW_API, then=["refusing", str(seconds), retry_after])) as api:
        yield api


@contextmanager
def queueing(folder: Path, *, slots: int, mean_s: float, seed: int) -> Iterator[Served]:
    """Work on so many calls at once, each for an exponentially distributed time, while all others wait."""
    arguments = ["queueing", str(slots), str(mean_s), str(seed)]
    with running(ProgramProcess(folder, sys.executable, RAW_API, then=arguments)) as api:
        yield api


class Simulated:
    """A simulator that runs."""

    def __init__(self, process: SimulatorProcess, log: Path) -> None:
        self._process = process
        self._log = log

    @property
    def url(self) -> str:
        """Base URL, without a slash at its end."""
        return self._process.url

    def calls(self) -> list[Call]:
        """Return the calls that were answered so far."""
        self._process.stats()  # what was buffered is in the file then
        lines = msgspec.json.Decoder(LogLine).decode_lines(self._log.read_bytes())
        return [Call(line.path, line.status or 0, line.time, 0.0) for line in lines]

    def tally(self) -> Tally:
        """Return the sum of them."""
        return tally(self.calls())


@contextmanager
def simulated(
    folder: Path, *, limit: str, kind: EnforcerKind, headers: HeaderStyle = HeaderStyle.NONE
) -> Iterator[Served]:
    """Count as the simulator does; answers take no time."""
    log = Path(tempfile.mkdtemp(prefix="simulator-", dir=folder)) / "answers.log"
    options = SimulatorOptions(limits=(parse_limit(limit),), enforcer=kind, headers=headers, log=log)
    with SimulatorProcess(options) as process:
        yield Simulated(process, log)
