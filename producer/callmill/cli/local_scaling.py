"""LocalScaling: keeps as many worker processes on this machine as the work needs."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Collection, Sequence

from callmill.cli.local_fleet import LocalFleet, Program, workers
from callmill.cli.overview_session import open_overview
from callmill.cli.worker_range import WorkerRange
from callmill.errors import OutsideError, RedisUnavailableError
from callmill.ledger.fleet import WorkerStatus
from callmill.overview.scaling_adviser import ScalingAdvice, ScalingAdviser

LOOK_EVERY_S = 2.0
_PATIENCE_S = 5.0


class LocalScaling:
    """Starts workers of a local fleet, and lets them end.

    Args:
        fleet: The fleet.
        number: How many there may be.
        adviser: Who says how many the work needs, on all machines together.
        others: What the fleet runs besides workers.
        say: Takes what happens, line by line.
    """

    def __init__(
        self,
        fleet: LocalFleet,
        number: WorkerRange,
        adviser: ScalingAdviser,
        *,
        others: Sequence[Program] = (),
        say: Callable[[str], None],
    ) -> None:
        self._fleet = fleet
        self._range = number
        self._adviser = adviser
        self._others = others
        self._say = say
        self._number = number.least
        self._away = ""

    @property
    def number(self) -> int:
        """How many workers there are to be."""
        return self._number

    def change_by(self, step: int) -> None:
        """Have one worker more or fewer, as somebody asked: at least one."""
        self._run(max(1, self._number + step), "as asked")

    def look(self) -> None:
        """Look at the work and follow it; while Redis is away, all stays as it is."""
        try:
            advice, elsewhere = asyncio.run(self._read())
        except OutsideError as error:
            if not self._away:
                self._say(f"callmill: the number of workers stays at {self._number}: {error}")
            self._away = str(error)
            return
        self._away = ""
        wanted = advice.wanted - elsewhere
        number = min(self._range.most, max(self._range.least, wanted))
        bound = "" if number == wanted else f"; {number} at {'most' if number < wanted else 'least'}"
        self._run(number, advice.why + bound)

    async def _read(self) -> tuple[ScalingAdvice, int]:
        """Return the advice, and how many workers there are that are none of ours."""
        try:
            # Opened anew each time: an embedded server may come back at another address.
            async with asyncio.timeout(_PATIENCE_S), open_overview() as overview:
                views, running = await overview.apis(), await overview.workers()
                load = await overview.load_of(views, running)
        except TimeoutError as error:
            raise RedisUnavailableError(f"Redis did not answer within {_PATIENCE_S:g} s") from error
        return self._adviser.advise(load, time.monotonic()), _elsewhere(running, self._fleet.pids)

    def _run(self, number: int, why: str) -> None:
        if number != self._number:
            self._say(f"workers: {self._number} -> {number} ({why})")
            self._number = number
            self._fleet.run([*workers(number), *self._others])


def _elsewhere(running: Sequence[WorkerStatus], ours: Collection[int]) -> int:
    here = socket.gethostname()
    return sum(not worker.draining and (worker.host != here or worker.pid not in ours) for worker in running)
