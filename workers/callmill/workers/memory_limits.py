"""MemoryLimits: how much memory this process may have, and how that is shared out among what tenants and APIs send."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from msgspec import Struct

_MiB = 1 << 20
_CGROUPS, _OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_M_MMAP_THRESHOLD, _LARGE_BYTES = -3, 128 * 1024
_V1, _V2 = "memory.limit_in_bytes", "memory.max"


class MemoryLimits(Struct, frozen=True):
    """What parts of a process's memory are for; the defaults are for one that has enough.

    Attributes:
        large_chunks_bytes: For chunks with very large jobs.
        answers_bytes: For large answers until they are recorded.
        tight_from_bytes: When the process has so much in all, it takes in nothing large.
        recorded_at_once_bytes: For what goes to Redis in one round trip; it is there several times meanwhile.
    """

    large_chunks_bytes: int = 256 * _MiB
    answers_bytes: int = 1024 * _MiB
    recorded_at_once_bytes: int = 32 * _MiB
    tight_from_bytes: int = 1 << 62

    @classmethod
    def of_this_process(cls) -> MemoryLimits:
        """Share out what the kernel allows this process, or the memory of the machine."""
        whole, most = available_bytes(), cls()
        return cls(
            min(most.large_chunks_bytes, whole // 8),
            min(most.answers_bytes, whole // 6),
            min(most.recorded_at_once_bytes, whole // 32),
            whole // 3 * 2,
        )


def return_large_pieces() -> None:
    """Have the C library return each large piece of memory once it is free.

    By itself glibc raises the size from which it does so whenever one is freed, to 32 MiB in the end; what lies between
    smaller pieces then stays with the process, which after a while has several times what it uses.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def return_free_memory() -> None:
    """Have the C library return what it keeps of memory that is free, from between the pieces in use, too."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


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
