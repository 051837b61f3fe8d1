"""Room: how the lanes of one process share its threads.

Each thread of the pool holds one chunk. A lane that its limits pace takes in some seconds of work and leaves the rest
of its queue to others. A lane that nothing paces may use every thread but those that are kept for the other lanes. So a
lane that cannot start calls, or whose API hangs, does not keep another one waiting.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from callmill.ledger import ChunkRef
from callmill.workers.lane import Lane
from callmill.workers.lane_switch import LaneSwitch

_POLL_S = 0.005


class Room:
    """The threads of one process, by lane. Belongs to one event loop.

    Attributes:
        waiting: Chunks whose hints are here and wait for room.
    """

    def __init__(self, lanes: Mapping[str, Lane], switch: LaneSwitch, *, threads: int) -> None:
        self.waiting: set[ChunkRef] = set()
        self._lanes = lanes
        self._switch = switch
        kept_for_each = max(1, threads // (2 * len(lanes))) if lanes else 0
        self._most = max(kept_for_each, threads - (len(lanes) - 1) * kept_for_each)
        self._threads: Counter[str] = Counter()
        self._doors = {api: asyncio.Lock() for api in lanes}
        self._open = True

    @asynccontextmanager
    async def enter(self, lane: Lane, ref: ChunkRef) -> AsyncIterator[bool]:
        """Wait until the lane may have another chunk here, and give True; False: leave the chunk to others."""
        self._threads[lane.api] += 1
        self.waiting.add(ref)
        try:
            try:
                entered = await self._find(lane)
            finally:
                self.waiting.discard(ref)
            if not entered:
                self._switch.set(lane.api, on=False)
            yield entered
        finally:
            self._threads[lane.api] -= 1

    def shut(self) -> None:
        """Let nobody in any more."""
        self._open = False

    def filled(self, lane: Lane) -> None:
        """Take note that work has come in: a paced lane that is full now leaves its queue to others at once."""
        if lane.paced and not lane.has_room:
            self._switch.set(lane.api, on=False)

    def look(self) -> None:
        """Switch lanes on and off as they have room."""
        for lane in self._lanes.values():
            if self._switch.is_off(lane.api):
                if self._open and lane.has_room and self._threads[lane.api] <= self._most // 2:
                    self._switch.set(lane.api, on=True)
            else:
                self.filled(lane)

    async def _find(self, lane: Lane) -> bool:
        if lane.paced or self._threads[lane.api] > self._most:
            return self._open and lane.has_room and self._threads[lane.api] <= self._most
        async with self._doors[lane.api]:
            while self._open and not lane.has_room:  # noqa: ASYNC110 - an event per call would cost more
                await asyncio.sleep(_POLL_S)
        return self._open
