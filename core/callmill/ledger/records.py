"""What the ledger tells about a batch and about a chunk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum

from msgspec import Struct

from callmill.config.public_api import ApiAddress
from callmill.config.short_texts import MOST_OF_NAME, MOST_OF_REASON, read_short
from callmill.errors import UnknownFormatError
from callmill.jobs.formats import FORMAT
from callmill.jobs.line import Line
from callmill.jobs.traffic import NORMAL, Priority, TrafficClass
from callmill.ledger.keys import ChunkRef


class BatchState(StrEnum):
    """Where a batch is in its life."""

    SUBMITTING = "submitting"
    RUNNING = "running"
    PAUSED = "paused"
    CANCELLED = "cancelled"
    DONE = "done"

    @classmethod
    def read(cls, control: bytes | None, phase: bytes | None, *, ended: bool) -> BatchState:
        """Return the state that fields of a batch's META tell."""
        if control == b"cancelled":
            return cls.CANCELLED
        if ended:
            return cls.DONE
        if control == b"paused":
            return cls.PAUSED
        return cls.RUNNING if phase == b"sealed" else cls.SUBMITTING


class BatchRecord(Struct, frozen=True, kw_only=True):
    """A batch as the ledger has it at one moment.

    Attributes:
        total: Jobs submitted so far; final once the batch is sealed.
        chunks: Chunks written so far.
        calls: HTTP calls made for it.
        retries: Calls made because an earlier one failed.
        throttled: Calls that the API answered with 429.
        leased: Chunks that workers hold now.
        created_ms: Unix time in milliseconds, as are the others; 0: not yet.
        again_ms: When failed jobs ran again after it was over.
        again_jobs: How many ran since then.
        apis: Names of the APIs that it uses.
        bound_to: Which API each name means; those left out: any.
        own_lines: Whether its chunks wait in lines of their own, apart from other batches.
        former: In which lines they waited before the current binding, by API, as ``bind.lua`` notes it.
        traffic: Whom its calls go before and behind.
        full: Held, because its outcomes fill their bound: nobody reads and releases them.
        unread_bytes: Bytes of its outcomes that were not released.
        max_unread_bytes: More of them, and it is held until half of them are released; 0: it never is.
        deadline_ms: After which no call of it starts; 0: no such time.
        reason: Why it was cancelled, where nobody asked for it.
        format: The ledger format that it is written in; of a newer one no more is known than id and name.
    """

    id: str
    name: str
    state: BatchState
    sealed: bool
    ended: bool
    total: int
    chunks: int
    succeeded: int
    failed: int
    calls: int
    retries: int
    throttled: int
    leased: int
    created_ms: int
    sealed_ms: int
    ended_ms: int
    again_ms: int = 0
    again_jobs: int = 0
    apis: list[str]
    bound_to: dict[str, ApiAddress] = {}
    own_lines: bool = False
    former: dict[str, str] = {}
    traffic: TrafficClass = NORMAL
    full: bool = False
    unread_bytes: int = 0
    max_unread_bytes: int = 0
    deadline_ms: int = 0
    reason: str = ""
    format: int = 1

    @property
    def newer(self) -> bool:
        """Whether only a newer Callmill can read it."""
        return self.format > FORMAT

    @property
    def recorded(self) -> int:
        """Jobs that have their outcome."""
        return self.succeeded + self.failed

    @property
    def began_ms(self) -> int:
        """When it began to run: as it was submitted, or when failed jobs ran again after it was over."""
        return self.again_ms or self.created_ms

    @property
    def recorded_since(self) -> int:
        """Jobs that got their outcome since it began to run."""
        return self.again_jobs - (self.total - self.recorded) if self.again_ms else self.recorded

    def line(self, api: str) -> Line:
        """Return the line in which its chunks of an API wait."""
        bound = self.bound_to.get(api)
        identity = "" if bound is None else bound.identity
        return Line(api, self.traffic, self.format, identity, self.id if self.own_lines else "")

    @property
    def former_lines(self) -> list[Line]:
        """The lines in which its chunks waited before it was bound as it is now, without that of now."""
        lines = [
            Line(api, self.traffic, self.format, identity.removeprefix("-"), self.id if own else "")
            for api, was in self.former.items()
            for identity, _, own in (left.partition("/") for left in was.split())
        ]
        return [line for line in lines if line != self.line(line.api)]

    @classmethod
    def read(cls, batch_id: str, fields: Mapping[bytes, bytes]) -> BatchRecord:
        """Return the batch whose META has these fields."""
        written = read_number(fields.get(b"format", b"1"))
        if written > FORMAT:  # what else is in there may mean something else
            fields = {b"name": fields.get(b"name", b""), b"control": b"run", b"phase": b"sealed"}
        number = {name: read_number(fields.get(name.encode())) for name in _NUMBERS}
        ended = b"ended_ms" in fields
        apis = {name[4:].decode(): ApiAddress.parse(to.decode()) for name, to in fields.items() if name[:4] == b"api:"}
        return cls(
            id=batch_id,
            name=read_short(fields.get(b"name", b""), MOST_OF_NAME),
            state=BatchState.read(fields.get(b"control"), fields.get(b"phase"), ended=ended),
            sealed=fields.get(b"phase") == b"sealed",
            ended=ended,
            full=b"full" in fields,
            unread_bytes=read_number(fields.get(b"out_bytes")) - read_number(fields.get(b"released_bytes")),
            apis=sorted(apis),
            bound_to={name: bound for name, bound in apis.items() if bound is not None},
            own_lines=b"own_lines" in fields,
            former={name[4:].decode(): was.decode() for name, was in fields.items() if name[:4] == b"was:"},
            traffic=_traffic(fields),
            reason=read_short(fields.get(b"reason", b""), MOST_OF_REASON),
            format=written,
            **number,
        )


_NUMBERS = (
    "total", "chunks", "succeeded", "failed", "calls", "retries", "throttled", "leased",
    "created_ms", "sealed_ms", "ended_ms", "deadline_ms", "max_unread_bytes",
    "again_ms", "again_jobs",
)  # fmt: skip


def read_number(raw: bytes | None) -> int:
    """Return a number of a batch; 0 where somebody wrote something else: a list of batches shows the others."""
    try:
        return int(raw or 0)
    except ValueError:
        return 0


def _traffic(fields: Mapping[bytes, bytes]) -> TrafficClass:
    """Return a batch's class; the normal one where somebody wrote what is none."""
    try:
        return TrafficClass(Priority(fields.get(b"priority", b"normal").decode()), fields.get(b"tenant", b"").decode())
    except ValueError:
        return NORMAL


def recorded_per_s(record: BatchRecord, ring: Iterable[bytes], now_s: int, over_s: int = 10) -> float:
    """Return a batch's outcomes per second over the last whole seconds, or those since its beginning.

    Args:
        record: The batch.
        ring: What its RATE holds: ``second count``.
        now_s: Unix time in seconds, on the clock of Redis.
        over_s: How many seconds.
    """
    since = max(now_s - over_s, record.began_ms // 1000)
    recorded = sum(int(n) for second, n in (slot.split() for slot in ring) if since <= int(second) < now_s)
    return recorded / max(1, now_s - since)


class Suspect(Struct, frozen=True):
    """What of a chunk ran alone in its process, because workers that held the chunk died.

    Attributes:
        offset: The job; None: all of the chunk.
        deaths: How many workers died with it.
    """

    offset: int | None
    deaths: int


class Throttles(Struct, frozen=True):
    """How an API refused a job because of its limits.

    Attributes:
        count: How often.
        since_ms: Unix time in milliseconds of the first time, on the clock of Redis.
    """

    count: int
    since_ms: int


class Claim(Struct, frozen=True):
    """The right to execute a chunk, until the lease ends or a higher fence is given out.

    Attributes:
        recorded: Offsets in the chunk that have their outcome already.
        attempts: Attempts spent so far, by offset, where there were any.
        not_before_ms: Unix times in milliseconds, on the clock of Redis, before which jobs must not run, by offset.
        spared: Failed attempts that were not counted because the API was down, by offset.
        throttles: Refusals because of limits, by offset.
        claims: How often the chunk was claimed before.
        now_ms: Unix time in milliseconds of the claim, on the clock of Redis.
        deadline_ms: Unix time in milliseconds after which no call of its batch starts; None: no such time.
        count: Jobs in the chunk.
        deaths: How many leases in a row ended without their workers giving the chunk up.
        size_bytes: Bytes of the payload in Redis; of more than ``SMALL_CHUNK_BYTES`` it is not here yet.
        suspect: What ran alone last, where there were so many that something did.
        batch_name: Name of the batch, for people.
        corrupt: Why it cannot be run, where somebody changed what Redis holds of it.
    """

    ref: ChunkRef
    fence: int
    payload: bytes
    recorded: frozenset[int]
    attempts: dict[int, int]
    not_before_ms: dict[int, int]
    claims: int
    now_ms: int
    count: int
    spared: dict[int, int] = {}
    throttles: dict[int, Throttles] = {}
    deaths: int = 0
    size_bytes: int = 0
    suspect: Suspect | None = None
    deadline_ms: int | None = None
    batch_name: str = ""
    corrupt: str = ""


class ClaimRefused(StrEnum):
    """Why a hint leads to nothing."""

    GONE = "gone"
    LEASED = "leased"
    WAITING = "waiting"
    PAUSED = "paused"
    MOVED = "moved"


class Requeued(Struct, frozen=True):
    """Chunks that need a hint.

    Attributes:
        put_back: They are queued again.
        not_taken: They were put back a while ago, and nobody has taken them since.
        newer: Batches, by id, that a newer Callmill wrote and of which chunks are due, which were left alone.
    """

    put_back: list[ChunkRef] = []
    not_taken: list[ChunkRef] = []
    newer: dict[str, UnknownFormatError] = {}


class CommitResult(Struct, frozen=True):
    """What became of a bundle.

    Attributes:
        hint_wanted: The chunk is queued again; somebody must publish its hint.
        proceed: The batch runs on; False: paused or cancelled, start no further calls for it.
    """

    hint_wanted: bool
    proceed: bool
