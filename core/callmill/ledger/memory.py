"""MemoryGauge: whether Redis has room for more.

Redis refuses writes at its ``maxmemory``. Below it there are two marks: from the watermark on producers wait, and
halfway between it and full workers stop, too. So what was submitted can still be done, which frees the memory of its
jobs; and when everybody has stopped, calls in flight can still be recorded.

A producer waits earlier if its own batch takes most of the memory: the jobs of one batch may take so many times the
room that they leave to others (``_TIMES_THE_ROOM``). A batch alone thus fills four fifths, ten large ones leave a
fortieth, and a small batch finds room beside them. Choudhury and Hahne, "Dynamic queue length thresholds for
shared-memory packet switches", 1998.
"""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Any

from redis.exceptions import ResponseError

from callmill.ledger.session import LedgerSession

_LOOKED_FOR_S = 0.1
_ROOM_AGAIN = 0.95
"""Below this share of a mark there is room again, so that nobody stops and goes on at every write."""

_TIMES_THE_ROOM = 4
_MIB = 2**20


class Role(StrEnum):
    """Who wants room."""

    PRODUCER = "producers"
    WORKER = "workers"


class MemoryGauge:
    """The memory of the ledger's Redis, as one process sees it.

    Args:
        session: The ledger.
        watermark: Share of ``maxmemory`` from which on producers wait; 1: nobody ever does.
    """

    def __init__(self, session: LedgerSession, watermark: float) -> None:
        self._session = session
        self._marks = {Role.PRODUCER: watermark, Role.WORKER: (1 + watermark) / 2}
        self._waiting: set[Role] = set()
        self._looked_s = float("-inf")
        self._used_bytes = self._most_bytes = 0

    async def most_bytes(self) -> int:
        """Return Redis's ``maxmemory``; 0: none, or it may not be asked.

        Raises:
            RedisUnavailableError: Redis cannot be reached.
        """
        await self._look()
        return self._most_bytes

    async def why_wait(self, role: Role, stored_bytes: int = 0) -> str:
        """Say why there is no room now; empty where there is. A look holds for a tenth of a second.

        ``stored_bytes``: what the batch that wants more has in Redis already.

        Raises:
            RedisUnavailableError: Redis cannot be reached.
        """
        mark = self._marks[role]
        if mark >= 1:
            return ""
        if time.monotonic() - self._looked_s >= _LOOKED_FOR_S:
            await self._look()
        waits = self._used_bytes >= self._most_bytes * mark * (_ROOM_AGAIN if role in self._waiting else 1.0)
        if not self._most_bytes or not waits:
            self._waiting.discard(role)
            return self._why_leave_room(self._most_bytes * mark - self._used_bytes, stored_bytes)
        self._waiting.add(role)
        return (
            f"Redis has {self._used_bytes / self._most_bytes:.0%} of its {self._most_bytes / _MIB:,.0f} MiB in use, "
            f"and {role} wait from {mark:.1%} on: read and release outcomes, delete batches, or raise maxmemory"
        )

    def _why_leave_room(self, room_bytes: float, stored_bytes: int) -> str:
        if not self._most_bytes or stored_bytes <= room_bytes * _TIMES_THE_ROOM:
            return ""
        return (
            f"the batch's waiting jobs take {stored_bytes / _MIB:,.0f} MiB of Redis's memory and leave "
            f"{room_bytes / _MIB:,.0f} MiB to others; it goes on when some are done"
        )

    async def _look(self) -> None:
        info = await self._session.answer(self._info())
        self._most_bytes = int(info.get("maxmemory", 0))
        # As Redis itself counts: buffers of replicas and of the append-only file are left out.
        self._used_bytes = int(info.get("used_memory", 0)) - int(info.get("mem_not_counted_for_evict", 0))
        self._looked_s = time.monotonic()

    async def _info(self) -> dict[str, Any]:
        try:
            info: dict[str, Any] = await self._session.redis.info("memory")
        except ResponseError:  # forbidden; Redis will say itself when it is full
            return {}
        return info
