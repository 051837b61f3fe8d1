"""Room: how the lines of one process share its threads.

Each thread of the pool holds one chunk. Every line has one thread of its own, so that none waits behind another's
chunks; the rest are shared. A line that its limits pace takes in some seconds of work and leaves the rest of its queue
to others. A line that nothing paces may use every shared thread but those that are kept for the other lanes, and beside
other lines of its API its part of them. So a line that cannot start calls, or whose API hangs, keeps none waiting.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from time import monotonic

from callmill.jobs.line import Line
from callmill.ledger import ChunkRef
from callmill.workers.lane import Lane
from callmill.workers.lane_switch import LaneSwitch
from callmill.workers.served_lines import ServedLines

_POLL_S = 0.005
_PACED_POLL_S = 0.025
_PATIENCE_S = 2.0
"""How long a chunk waits for room in a paced line before it is left to others. Some always come before it shows that
the line is full, and to put one back costs as much as twenty calls. A full line has work for as long."""


class Room:
    """The threads of one process, by line. Belongs to one event loop.

    Attributes:
        waiting: Chunks whose hints are here and wait for room.
    """

    def __init__(self, lanes: Mapping[str, Lane], switch: LaneSwitch, served: ServedLines, *, threads: int) -> None:
        self.waiting: set[ChunkRef] = set()
        self._lanes = lanes
        self._switch = switch
        self._served = served
        self._lines = dict(served.own)
        switch.serve(self._lines)
        kept_for_each = max(1, threads // (2 * len(lanes))) if lanes else 0
        self._shared_by_lane = max(kept_for_each, threads - (len(lanes) - 1) * kept_for_each) - 1
        self._shared_by_all = threads - len(lanes)
        self._threads: Counter[str] = Counter()
        self._shared: Counter[str] = Counter()
        self._doors: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._entering: dict[ChunkRef, asyncio.Lock] = {}
        self._open, self._held, self._leaves_queues = True, False, False
        self._stirred = asyncio.Event()

    def serve(self, used: Iterable[Line]) -> None:
        """Serve these lines beside the APIs' own; forget those that were served before and are not used any more."""
        lines = self._served.of(used)
        # A line whose turn is over is served for as long as its chunks are here.
        lines |= {name: self._lines[name] for name in self._threads if name in self._lines}
        if lines.keys() == self._lines.keys():
            return
        classes = {(line.api, line.traffic) for line in lines.values()}  # several lines may share a class
        for name in self._lines.keys() - lines.keys():
            gone = self._lines[name]
            if (gone.api, gone.traffic) not in classes:
                self._lanes[gone.api].drop(gone.traffic)
            self._doors.pop(name, None)
        self._lines = lines
        self._switch.serve(lines)

    @asynccontextmanager
    async def enter(self, line: Line, ref: ChunkRef, *, first: bool = False) -> AsyncIterator[bool]:
        """Wait until the line may have another chunk here, and give True; False: leave the chunk to others.

        A chunk that goes ``first`` does not wait behind those that wait for room in a line that nothing paces.
        """
        name = ref.line
        self._threads[name] += 1
        self._stirred.set()
        shared = self._threads[name] > 1
        self._shared[line.api] += shared
        self.waiting.add(ref)
        try:
            try:
                entered = await self._find(line, ref, shared=shared, first=first)
            finally:
                self.waiting.discard(ref)
            if not entered:
                self._switch.set(name, on=False)
            yield entered
        finally:
            self.taken_in(ref)
            self._threads[name] -= 1
            self._shared[line.api] -= self._threads[name] > 0
            if not self._threads[name]:
                del self._threads[name]

    def shut(self) -> None:
        """Let nobody in any more."""
        self._open = False

    def hold(self) -> None:
        """Let nobody in until ``resume``."""
        self._held = True

    def resume(self) -> None:
        """Let chunks in again, unless the room is shut."""
        self._held = False

    def leave_queues(self, *, on: bool) -> None:
        """Let nobody in and leave every queue alone, or end that."""
        self._leaves_queues = on
        self.look()

    def taken_in(self, ref: ChunkRef) -> None:
        """Take note that the jobs of a chunk that entered are in their line, or will never be: the next may enter."""
        if (door := self._entering.pop(ref, None)) is not None:
            door.release()

    def filled(self, line: Line) -> None:
        """Take note that work has come in: a paced line that is full now leaves its queue to others at once."""
        lane = self._lanes[line.api]
        if lane.paced and not lane.has_room(line.traffic):
            self._switch.set(str(line), on=False)

    def look(self) -> None:
        """Switch lines on and off as they have room; none is switched on while chunks that came wait to enter it."""
        for name, line in self._lines.items():
            if self._leaves_queues:
                self._switch.set(name, on=False)
            elif not self._switch.is_off(name):
                self.filled(line)
            elif self._lets_in and not self._doors[name].locked() and self._can_take(line, name):
                self._switch.set(name, on=True)

    @property
    def at_rest(self) -> bool:
        """Whether no chunk is here, and every line's queue is consumed."""
        return not self._threads and not any(map(self._switch.is_off, self._lines))

    @property
    def may_open_soon(self) -> bool:
        """Whether a line that no limit paces is here or left to others: it may need its next chunk at any moment."""
        return any(
            not self._lanes[line.api].paced and (name in self._threads or self._switch.is_off(name))
            for name, line in self._lines.items()
        )

    async def stirred(self, timeout_s: float) -> None:
        """Return when a chunk has come in, at the latest after so many seconds."""
        self._stirred.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._stirred.wait()

    async def _find(self, line: Line, ref: ChunkRef, *, shared: bool, first: bool) -> bool:
        lane, name = self._lanes[line.api], ref.line
        if shared and not self._may_share(line, self._threads[name] - 1):
            return False
        door = self._doors[name]
        if lane.paced:  # one at a time: how much room a chunk takes is known once its jobs are in
            until_s = monotonic() + _PATIENCE_S
            await door.acquire()
            entered = False
            try:
                entered = await self._gets_room(line, until_s)
            finally:
                if not entered:
                    door.release()
            if entered:
                self._entering[ref] = door
            return entered
        if first:
            return self._lets_in
        async with door:
            while self._lets_in and not lane.has_room(line.traffic):
                if lane.paced:  # since a moment: its API is down
                    return False
                await asyncio.sleep(_POLL_S)
        return self._lets_in

    async def _gets_room(self, line: Line, until_s: float) -> bool:
        """Wait until a paced line has room; False: chunks are let in no more, or the time is over."""
        while self._lets_in:
            if self._lanes[line.api].has_room(line.traffic):
                return True
            if monotonic() >= until_s:
                return False
            await asyncio.sleep(_PACED_POLL_S)
        return False

    @property
    def _lets_in(self) -> bool:
        return self._open and not self._held and not self._leaves_queues

    def _can_take(self, line: Line, name: str) -> bool:
        """Say whether a line has room, and threads, and not the last one only, or it were off again at once."""
        if not self._lanes[line.api].has_room(line.traffic):
            return False
        return not self._threads[name] or self._may_share(line, 2 * self._threads[name] - 1)

    def _may_share(self, line: Line, threads: int) -> bool:
        """Say whether a line may use so many of the shared threads now."""
        part = math.ceil(self._shared_by_lane * self._lanes[line.api].share(line.traffic))
        if threads > part or self._shared[line.api] > self._shared_by_lane:
            return False
        return self._shared.total() <= self._shared_by_all
