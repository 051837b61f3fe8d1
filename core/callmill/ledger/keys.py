"""Every Redis key of the ledger, built here and nowhere else.

One batch owns a fixed set of keys, so that it can expire or be deleted without a scan. ``member`` names a chunk in the
sorted sets that all batches share.
"""

from __future__ import annotations

from operator import attrgetter

from msgspec import Struct

from callmill.jobs.formats import FORMAT
from callmill.jobs.line import api_of, format_of

PREFIX = "callmill:"
_MOST_DIGITS = 15

BATCHES = f"{PREFIX}batches"
"""ZSET: batch id -> creation time (ms)."""
DUE = f"{PREFIX}due"
"""ZSET: chunk member -> when somebody must look at it again (ms): its lease's end, or its due time."""
RESUMED = f"{PREFIX}resumed"
"""SET: ids of batches that may run and still have chunks held back."""
MOVING = f"{PREFIX}moving"
"""ZSET: id of a batch that was bound to another API, and whose chunks may not all have followed -> since when (us)."""
APIS = f"{PREFIX}apis"
"""HASH: API name -> public facts (JSON) that workers announced."""
APIS_AT = f"{PREFIX}apis:at"
"""HASH: API name@identity -> the same, for every API that was ever announced."""
WORKERS = f"{PREFIX}workers"
"""ZSET: worker id -> when it last reported (ms)."""
LINES = f"{PREFIX}lines"
"""ZSET: line -> when a chunk of it was queued last (ms); an API's own line is not in it, it is always served."""
OPEN = f"{PREFIX}open"
"""ZSET: id of a batch that is not sealed yet -> when its producer wrote last (ms)."""
DEADLINES = f"{PREFIX}deadlines"
"""ZSET: id of a batch -> after when no call of it starts (ms)."""
CONTROLS = f"{PREFIX}controls"
"""STRING: how often batches were paused, resumed, cancelled, deleted or bound anew; workers look again when it
changes."""
RECONCILED = f"{PREFIX}reconciled"
"""HASH: what reconcilers did -> how often, since ever."""
RECONCILER_LOCK = f"{PREFIX}reconciler" if FORMAT == 1 else f"{PREFIX}reconciler:{FORMAT}"
"""STRING with expiry: the worker that reconciles now. One for each format: the round of an older worker leaves out what
a newer one can do."""
ACTIVE = f"{PREFIX}active"
"""ZSET: id of a batch that has not ended -> when the alerts' watch looked at it last (ms), or when it was created."""
ENDED = f"{PREFIX}ended"
"""ZSET: id of a batch that ended, of which the alerts have not told yet -> when it ended (ms)."""
ALERT_STATES = f"{PREFIX}alerts:states"
"""HASH: kind:what of a condition that is, or lately was, out of the ordinary -> its AlertState (JSON)."""
ALERTS = f"{PREFIX}alerts"
"""STREAM, bounded: what the alerts have to tell (field e, JSON)."""
ALERTS_SENT = f"{PREFIX}alerts:sent"
"""HASH: name of a webhook -> id of the last entry of the stream that it was told, or need not be."""

BARRIER = f"{PREFIX}barrier"
"""CHANNEL without listeners: what is published there is the last thing that a connection wrote before it waits."""


def queued(line: str) -> str:
    """ZSET: chunk member -> since when it waits for a worker (ms), for one line."""
    return f"{PREFIX}queued:{line}"


def worker_status(worker: str) -> str:
    """STRING with expiry: what a worker process does (JSON)."""
    return f"{PREFIX}worker:{worker}"


def far_start(api: str) -> str:
    """STRING that expires when the next call of an API may start, where that is far off (JSON: FarStart)."""
    return f"{PREFIX}start:{api}"


def reported(worker: str) -> str:
    """STRING with expiry: number of the latest counts of a worker process that are in."""
    return f"{PREFIX}reported:{worker}"


class ApiKeys:
    """The keys of what was counted of one API; they expire when no worker has reported it for long."""

    __slots__ = ("minutes", "total")

    def __init__(self, api: str) -> None:
        prefix = f"{PREFIX}api:{api}:"
        self.total = prefix + "total"
        """HASH: name of a count -> what it came to since ever."""
        self.minutes = prefix + "minutes"
        """HASH: minute modulo 64 -> the counts of that minute (msgpack: name -> number; "at": which minute it is)."""


def alert_sender(webhook: str) -> str:
    """STRING with expiry: the worker that tells one webhook now."""
    return f"{PREFIX}alerts:sender:{webhook}"


BATCH = (
    *("meta", "chunks", "state", "done", "failed", "rest", "parked", "outcomes", "latency", "rate", "failures"),
    *("suspects", "history", "errors", "slowest", "superseded"),
)
"""Every key of a batch, in the order in which scripts take them."""

_of_batch = attrgetter(*BATCH)


class BatchKeys:
    """The keys of one batch."""

    __slots__ = BATCH

    def __init__(self, batch_id: str) -> None:
        prefix = f"{PREFIX}b:{batch_id}:"
        self.meta = prefix + "meta"
        """HASH: format, name, total, counters, phase, control, times. The key and the first two never change."""
        self.chunks = prefix + "chunks"
        """HASH: chunk number -> payload; gone once every job in it succeeded."""
        self.state = prefix + "state"
        """HASH: chunk number -> fence|status|worker|count|done|failed|claims, and |deaths if any; absent: done."""
        self.done = prefix + "done"
        """HASH: chunk number -> bitmap of its recorded jobs, while it is unfinished."""
        self.failed = prefix + "failed"
        """HASH: chunk number -> bitmap of its failed jobs."""
        self.rest = prefix + "rest"
        """HASH: chunk number -> what was spent on its unrecorded jobs so far, and when they may run (rests.py);
        again/chunk number -> bitmap of its failed jobs that run again when its worker has given it up."""
        self.parked = prefix + "parked"
        """ZSET: chunk member -> since when it is held back (paused, or not yet sealed) (ms)."""
        self.outcomes = prefix + "out"
        """STREAM: bundles of outcomes (field b), and a marker (field end) when the batch ended."""
        self.latency = prefix + "latency"
        """HASH: latency bucket -> calls."""
        self.rate = prefix + "rate"
        """HASH: second modulo 64 -> "second count" of recorded outcomes."""
        self.failures = prefix + "failures"
        """HASH: chunk number/offset -> what each of the job's failed outcomes was."""
        self.suspects = prefix + "suspects"
        """HASH: chunk number -> fence|what of it runs alone, because its workers died|how many died with that."""
        self.history = prefix + "history"
        """HASH: step -> seconds; number of a step -> the counters as they were when it began; at most 240 steps."""
        self.errors = prefix + "errors"
        """HASH: cause -> jobs that count as failed now because of it; at most 64 causes, the rest as (other)."""
        self.slowest = prefix + "slowest"
        """ZSET: position in the batch, and id where the producer gave one -> latency (us); the ten slowest."""
        self.superseded = prefix + "superseded"
        """HASH: block of 1024 positions in the batch -> which of these jobs ran again, and up to which entry of the
        stream their outcomes are superseded (superseded.py); absent: no job ran again."""

    def all(self) -> list[str]:
        """Return every key of the batch, in the order of ``BATCH``."""
        return list(_of_batch(self))


_BESIDE_BATCH = {
    "due": DUE,
    "lines": LINES,
    "resumed": RESUMED,
    "controls": CONTROLS,
    "open": OPEN,
    "active": ACTIVE,
    "ended": ENDED,
}

SHARED = (*BATCH, *_BESIDE_BATCH)
"""The names of what ``shared`` returns."""


def shared(batch_id: str) -> list[str]:
    """Return the keys that every script of a batch takes first."""
    return [*_of_batch(BatchKeys(batch_id)), *_BESIDE_BATCH.values()]


class ChunkRef(Struct, frozen=True, order=True):
    """Names a chunk: which batch, which number, in which line (the text of a ``Line``) it waits."""

    batch_id: str
    number: int
    line: str

    @property
    def api(self) -> str:
        """The API that its calls go to."""
        return api_of(self.line)

    @property
    def format(self) -> int:
        """The ledger format of its batch."""
        return format_of(self.line)

    @property
    def member(self) -> str:
        """The chunk's name in the shared sorted sets."""
        return f"{self.batch_id}/{self.number}/{self.line}"

    @classmethod
    def parse(cls, member: str) -> ChunkRef:
        """Read a member back; a ValueError: it names no chunk."""
        batch_id, number, line = member.split("/")
        if len(number) > _MOST_DIGITS:
            raise ValueError(f"{number[:_MOST_DIGITS]}... is no number of a chunk")
        return cls(batch_id, int(number), line)
