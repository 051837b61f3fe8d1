"""FleetCpu: what a call costs the workers of this machine in CPU time."""

from __future__ import annotations

from collections.abc import Iterable

from callmill.ledger.fleet import WorkerStatus


class FleetCpu:
    """Follows what local workers report of themselves; starting up is not counted."""

    def __init__(self) -> None:
        self._first: dict[str, WorkerStatus] = {}
        self._last: dict[str, WorkerStatus] = {}

    def note(self, workers: Iterable[WorkerStatus]) -> None:
        """Take in what each of these workers reports now."""
        for worker in workers:
            self._first.setdefault(worker.id, worker)
            self._last[worker.id] = worker

    @property
    def us_per_call(self) -> float | None:
        """CPU microseconds per call; None before the first call was reported."""
        calls = sum(last.calls - self._first[name].calls for name, last in self._last.items())
        cpu_s = sum(last.cpu_s - self._first[name].cpu_s for name, last in self._last.items())
        return cpu_s / calls * 1e6 if calls else None
