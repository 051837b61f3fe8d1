"""Reporter: brings what this process does, and what it counted, to the ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from callmill.ledger import Bundle
from callmill.ledger.fleet import Counts, Fleet, WorkerStatus
from callmill.workers.lane import Lane


class Reporter:
    """Sends counts in numbered parcels: one that may not have arrived goes out again as it was, and counts once.

    Attributes:
        reconciled: What the reconciler of this process did since the last parcel.
    """

    def __init__(self, fleet: Fleet, lanes: Mapping[str, Lane]) -> None:
        self.reconciled: Counter[str] = Counter()
        self._fleet = fleet
        self._lanes = lanes
        self._since: dict[str, Counter[str]] = {}
        self._out: Counts | None = None
        self._number = 0

    def recorded(self, api: str, bundle: Bundle) -> None:
        """Count a bundle that is in the ledger."""
        lane = self._lanes.get(api)
        if lane is not None and bundle.outcomes:
            failed = len([True for _, outcome in bundle.outcomes if outcome.error_code is not None])
            lane.tally.recorded(len(bundle.outcomes) - failed, failed)

    async def send(self, status: WorkerStatus) -> None:
        """Report what the process does, and what it counted since the last report that arrived.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused; the counts go with the next report.
        """
        for api, lane in self._lanes.items():
            self._since.setdefault(api, Counter()).update(lane.tally.take())
        if self._out is None:
            self._number += 1
            apis = {api: dict(counts) for api, counts in self._since.items() if counts}
            self._out = Counts(number=self._number, apis=apis, reconciled=dict(+self.reconciled))
            self._since = {}
            self.reconciled.clear()
        await self._fleet.report(status, self._out)
        self._out = None
