"""MemoryLimits: how much memory this process may have, and how that is shared out among what tenants and APIs send."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from msgspec import Struct

_MiB = 1 << 20
_CGROUPS, _OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_V1, _V2 = "memory.limit_in_bytes", "memory.max"


class MemoryLimits(Struct, frozen=True):
    """What parts of a process's memory are for; the defaults are for one that has enough.

    Attributes:
        large_chunks_bytes: For chunks with very large jobs.
        answers_bytes: For large answers until they are recorded.
        recorded_at_once_bytes: For what goes to Redis in one round trip; it is there several times meanwhile.
    """

    large_chunks_bytes: int = 256 * _MiB
    answers_bytes: int = 1024 * _MiB
    recorded_at_once_bytes: int = 32 * _MiB

    @classmethod
    def of_this_process(cls) -> MemoryLimits:
        """Share out what the kernel allows this process, or the memory of the machine."""
        whole, most = available_bytes(), cls()
        return cls(
            min(most.large_chunks_bytes, whole // 8),
            min(most.answers_bytes, whole // 6),
            min(most.recorded_at_once_bytes, whole // 32),
        )


def available_bytes(cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUPS) -> int:
    """Return the memory that this process can have: of the machine, or of the smallest control group it is in."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_limits(cgroups, own)])


def _limits(cgroups: Path, own: Path) -> Iterator[int]:
    try:
        lines = own.read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = (cgroups / "memory", _V1) if controllers else (cgroups, _V2)
        group = PurePosixPath(path.lstrip("/"))
        for folder in (root / group, *(root / parent for parent in group.parents)):
            try:
                yield int((folder / name).read_text())
            except (OSError, ValueError):  # not there, or "max"
                continue
