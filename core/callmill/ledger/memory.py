"""MemoryGauge: whether Redis has room for more.

Redis refuses writes at its ``maxmemory``. Below it there are two marks: from the watermark on producers wait, and
halfway between it and full workers stop, too. So work that was submitted can still be done, which frees the memory of
its jobs, and calls in flight can be recorded when everybody has stopped.
"""

from __future__ import annotations

import time
from enum import StrEnum

from redis.exceptions import ResponseError

from callmill.ledger.session import LedgerSession

_LOOKED_FOR_S = 0.1
_ROOM_AGAIN = 0.95
"""Below this share of a mark there is room again, so that nobody stops and goes on at every write."""

_MIB = 2**20


class Role(StrEnum):
    """Who asks for room."""

    PRODUCER = "producers"
    WORKER = "workers"


class MemoryGauge:
    """The memory of the ledger's Redis, as one process sees it.

    Args:
        session: The ledger.
        watermark: Share of ``maxmemory`` from which on producers wait; 1: nobody ever does.
        role: Who asks.
    """

    def __init__(self, session: LedgerSession, watermark: float, role: Role = Role.PRODUCER) -> None:
        self._session = session
        self._mark = watermark if role is Role.PRODUCER else (1 + watermark) / 2
        self._role = role
        self._looked_s = float("-inf")
        self._reason = ""

    async def full(self) -> str:
        """Say why there is no room now; empty where there is. What was seen within a moment is said again.

        Raises:
            RedisUnavailableError: Redis cannot be reached.
        """
        now_s = time.monotonic()
        if self._mark < 1 and now_s - self._looked_s >= _LOOKED_FOR_S:
            self._reason = await self._look()
            self._looked_s = now_s
        return self._reason

    async def _look(self) -> str:
        info = await self._session.answer(_info(self._session))
        limit = int(info.get("maxmemory", 0))
        if not limit:
            return ""
        # What Redis itself counts: buffers of replicas and of the append-only file are none of ours.
        used = int(info["used_memory"]) - int(info.get("mem_not_counted_for_evict", 0))
        if used < limit * self._mark * (_ROOM_AGAIN if self._reason else 1.0):
            return ""
        return (
            f"{used / limit:.0%} of Redis's {limit / _MIB:,.0f} MiB is used, and {self._role} wait from {self._mark:.0%} "
            "on: read and release outcomes, delete batches, or raise maxmemory"
        )


async def _info(session: LedgerSession) -> dict[str, int]:
    try:
        info: dict[str, int] = await session.redis.info("memory")
    except ResponseError:  # forbidden: Redis itself will say when it is full
        return {}
    return info
