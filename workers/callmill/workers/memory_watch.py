"""Memory watch: a process that comes near to what it may have returns what is free, and takes in nothing large."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from callmill.workers.memory_limits import MemoryLimits, return_free_memory
from callmill.workers.rhythm import Rhythm
from callmill.workers.vitals import rss_bytes

log = logging.getLogger(__name__)

_EVERY_S = 0.25


class Bounded(Protocol):
    """What takes memory.

    Attributes:
        tight: Whether it may take only what it cannot do without.
    """

    tight: bool


async def watch_memory(limits: MemoryLimits, rhythm: Rhythm, *parts: Bounded) -> None:
    """Look now and then, and tell the parts, until cancelled."""
    tight = False
    while True:
        await rhythm.pause(_EVERY_S)
        held_bytes = rss_bytes()
        if held_bytes > limits.tight_from_bytes:
            await asyncio.to_thread(return_free_memory)
            held_bytes = rss_bytes()
        if tight != (held_bytes > limits.tight_from_bytes):
            tight = not tight
            _log(held_bytes, tight=tight)
            for part in parts:
                part.tight = tight


def _log(held_bytes: int, *, tight: bool) -> None:
    mib = held_bytes >> 20
    if tight:
        log.warning("%d MiB of memory used: nothing large is taken in", mib, extra={"action": "memory_tight"})
    else:
        log.info("%d MiB of memory used: there is room again", mib, extra={"action": "memory_room"})
