"""Room: how the lanes of one process share its threads.

Each thread of the pool holds one chunk. A lane that its limits pace takes in some seconds of work and leaves the rest
of its queue to others. A lane that nothing paces may use every thread while no other lane has work waiting; when one
has, it is held to its share. Either way a lane that cannot start calls does not keep another one waiting.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from redis.asyncio import Redis

from callmill.config.celery import lane_queue_key
from callmill.ledger import ChunkRef
from callmill.workers.lane import Lane
from callmill.workers.lane_switch import LaneSwitch

_POLL_S = 0.005
_LOOK_EVERY_S = 0.5


class Room:
    """The threads of one process, by lane. Belongs to one event loop.

    Attributes:
        waiting: Chunks whose hints are here and wait for room.
    """

    def __init__(self, lanes: Mapping[str, Lane], switch: LaneSwitch, broker: Redis, *, threads: int) -> None:
        self.waiting: set[ChunkRef] = set()
        self._lanes = lanes
        self._switch = switch
        self._broker = broker
        self._share = max(1, threads // 2)
        self._threads: Counter[str] = Counter()
        self._executing: Counter[str] = Counter()
        self._doors = {api: asyncio.Lock() for api in lanes}
        self._wanted: set[str] = set()
        self._looked_s = 0.0
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
            self._executing[lane.api] += entered
            try:
                yield entered
            finally:
                self._executing[lane.api] -= entered
        finally:
            self._threads[lane.api] -= 1

    def shut(self) -> None:
        """Let nobody in any more."""
        self._open = False

    async def look(self) -> None:
        """Switch lanes on and off as they have room; see now and then which queues have work waiting."""
        for lane in self._lanes.values():
            if self._switch.is_off(lane.api):
                if self._takes(lane) and self._threads[lane.api] <= self._share // 2:
                    self._switch.set(lane.api, on=True)
            elif lane.paced and not self._takes(lane):
                self._switch.set(lane.api, on=False)
        now_s = asyncio.get_running_loop().time()
        crowded = any(threads >= self._share for threads in self._threads.values())
        if crowded and len(self._lanes) > 1 and now_s - self._looked_s >= _LOOK_EVERY_S:
            self._looked_s = now_s
            await self._see_who_waits()

    async def _see_who_waits(self) -> None:
        pipeline = self._broker.pipeline(transaction=False)
        for api in self._lanes:
            pipeline.llen(lane_queue_key(api))
        lengths = await pipeline.execute()
        self._wanted = {
            api
            for api, length in zip(self._lanes, lengths, strict=True)
            if length and self._threads[api] < self._share and not self._switch.is_off(api)
        }

    async def _find(self, lane: Lane) -> bool:
        if lane.paced or not self._open:
            return self._takes(lane)
        async with self._doors[lane.api]:
            while not self._takes(lane):
                if not self._open or self._must_yield(lane.api):
                    return False
                await asyncio.sleep(_POLL_S)
        return True

    def _takes(self, lane: Lane) -> bool:
        crowded = self._executing[lane.api] >= self._share and (lane.paced or self._must_yield(lane.api))
        return self._open and lane.has_room and not crowded

    def _must_yield(self, api: str) -> bool:
        return self._threads[api] > self._share and bool(self._wanted - {api})
