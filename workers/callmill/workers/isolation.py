"""Isolation: gives one chunk the whole process for a while. Why, says ``suspicion.py``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from callmill.workers.chunk_run import ChunkRun
from callmill.workers.log_fields import of_claim
from callmill.workers.room import Room

log = logging.getLogger(__name__)


class Isolation:
    """Turns of chunks that run with nothing beside them, one at a time. Belongs to one event loop.

    Args:
        room: Lets nobody in while a turn lasts.
        runs: Returns the chunks that the process holds now.

    Attributes:
        taken: Whether a chunk has the process to itself, or waits for the others to end.
    """

    def __init__(self, room: Room, runs: Callable[[], Iterable[ChunkRun]]) -> None:
        self.taken = False
        self._room = room
        self._runs = runs
        self._rests_until_s = float("-inf")

    @property
    def free(self) -> bool:
        """Whether a turn may begin: none lasts, and after the last one others had as long."""
        return not self.taken and _now_s() >= self._rests_until_s

    @asynccontextmanager
    async def turn(self, run: ChunkRun) -> AsyncIterator[None]:
        """Enter when no other chunk is under way here, or when this one is over already."""
        self.taken, began_s = True, _now_s()
        self._room.hold()
        member = run.claim.ref.member
        log.warning(
            "chunk %s runs alone: %d workers that held it died", member, run.claim.deaths,
            extra={"action": "isolated", "deaths": run.claim.deaths, **of_claim(run.claim)},
        )  # fmt: skip
        try:
            await self._others_over(run)
            yield
        finally:
            self.taken = False
            self._rests_until_s = 2 * _now_s() - began_s
            self._room.resume()

    async def _others_over(self, run: ChunkRun) -> None:
        while not run.over.done():
            others = [other for other in self._runs() if other is not run and not other.over.done()]
            if not others:
                return
            for other in others:
                other.close()
            await asyncio.wait({run.over, *(other.over for other in others)}, return_when=asyncio.FIRST_COMPLETED)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
