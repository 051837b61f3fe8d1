"""Who waits for which workers, where several APIs share a name: the text that every view shows."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from msgspec import Struct

from callmill.config.public_api import ApiAddress
from callmill.ledger.fleet import LaneStatus, WorkerStatus
from callmill.ledger.records import BatchRecord


class WaitsElsewhere(Struct, frozen=True, kw_only=True):
    """Chunks that no worker takes, because they are for another API of a name that workers serve.

    Attributes:
        api: The name.
        address: The address of the API that they are for.
        chunks: How many wait to be taken.
        served_at: The addresses at which workers serve that name.
    """

    api: str
    address: str
    chunks: int
    served_at: list[str]

    @property
    def text(self) -> str:
        """Who waits for which workers, and the remedy."""
        chunks = "1 chunk waits" if self.chunks == 1 else f"{self.chunks:,} chunks wait"
        served = f"; {self.api} is served only at {' and '.join(self.served_at)}" if self.served_at else ""
        return (
            f"{chunks} for workers that serve {self.api} at {self.address}{served}: "
            "start one with that profile, or see `callmill apis`"
        )


def serving(record: BatchRecord, workers: Sequence[WorkerStatus]) -> list[WorkerStatus]:
    """Return the workers that execute chunks of a batch."""
    return [worker for worker in workers if any(_serves(worker, record, api) for api in record.apis)]


def lanes_of(record: BatchRecord, workers: Sequence[WorkerStatus]) -> list[LaneStatus]:
    """Return the lanes that calls of a batch go through."""
    return [
        lane
        for worker in workers
        for lane in worker.lanes
        if lane.api in record.apis and _serves(worker, record, lane.api)
    ]


def who_is_missing(record: BatchRecord, workers: Sequence[WorkerStatus]) -> str:
    """Say which missing workers a batch waits for; empty: none."""
    unserved = [api for api in record.apis if not any(_serves(worker, record, api) for worker in workers)]
    if not unserved or any(worker.unreadable for worker in workers):
        return ""
    bound = {api: to for api in unserved if (to := record.bound_to.get(api)) is not None}
    elsewhere = {api: at for api, to in bound.items() if (at := _addresses(workers, api, but=to))}
    if not elsewhere:
        names = (f"{api} at {bound[api].address}" if api in bound else api for api in unserved)
        return f"no worker serves {', '.join(names)}: start one with `callmill worker`"
    api, served_at = next(iter(elsewhere.items()))
    return (
        f"it needs workers that serve {api} at {bound[api].address}; {api} is served only at {' and '.join(served_at)}"
        ": start one with the other profile, or see `callmill apis`"
    )


def served_at(workers: Sequence[WorkerStatus], api: str) -> list[str]:
    """Return the addresses at which workers serve a name."""
    return sorted({worker.serves_at[api].address for worker in workers if api in worker.serves_at})


def _addresses(workers: Sequence[WorkerStatus], api: str, *, but: ApiAddress) -> Collection[str]:
    return [address for address in served_at(workers, api) if address != but.address]


def _serves(worker: WorkerStatus, record: BatchRecord, api: str) -> bool:
    return worker.serves(api, record.bound_to.get(api), record.id)
