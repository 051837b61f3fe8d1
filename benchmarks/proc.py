"""What Linux says of a process: its CPU time and its memory."""

from __future__ import annotations

import os
import time
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_AFTER_NAME = 2
"""Number of the first field after the process's name, which may hold blanks and brackets."""

_TIMES = slice(13 - _AFTER_NAME, 17 - _AFTER_NAME)
"""User and system time in ticks, of the process and of its children that have ended."""


def cpu_s(pid: int) -> float:
    """Return the user and system time of a process and of its living descendants, all their threads included."""
    return sum(map(_cpu_clock_s, _family(pid)))


def cpu_with_ended_s(pid: int) -> float:
    """Return the user and system time of a process and of all its descendants, those that have ended included."""
    return sum(int(ticks) for fields in _family(pid).values() for ticks in fields[_TIMES]) * _TICK_S


def rss_mb(pid: int) -> float:
    """Return the resident memory of a process in MB."""
    return _status_mb(pid, "VmRSS")


def pss_mb(pid: int) -> float:
    """Return the resident memory of a process in MB, where pages that it shares with others count in parts."""
    return _field_mb(Path(f"/proc/{pid}/smaps_rollup"), "Pss")


def peak_rss_mb(pid: int) -> float:
    """Return the most resident memory that a process ever had, in MB."""
    return _status_mb(pid, "VmHWM")


def _cpu_clock_s(pid: int) -> float:
    """Read the clock that clock_getcpuclockid names: ticks of /proc are too coarse for short runs."""
    try:
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:  # it ended meanwhile
        return 0.0


def _family(pid: int) -> dict[int, list[str]]:
    everybody = {int(path.name): fields for path in Path("/proc").glob("[0-9]*") if (fields := _stat(path))}
    family, unseen = {}, [pid]
    while unseen:
        parent = unseen.pop()
        family[parent] = everybody[parent]
        unseen += [child for child, fields in everybody.items() if int(fields[3 - _AFTER_NAME]) == parent]
    return family


def _stat(process: Path) -> list[str] | None:
    try:
        text = (process / "stat").read_text()
    except OSError:  # it ended meanwhile
        return None
    return text.rpartition(") ")[2].split()


def _status_mb(pid: int, field: str) -> float:
    return _field_mb(Path(f"/proc/{pid}/status"), field)


def _field_mb(path: Path, field: str) -> float:
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024 / 1e6
    raise ProcessLookupError(f"{path} has no {field}: the process ended")
