"""The scripts about one batch: what each takes, reads and returns, by the names that stand in the script as well.

What they mean is told in the contract on top of each ``lua/NAME.lua``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from msgspec import Struct

from callmill.config.lua_script import LuaScript
from callmill.jobs.bounds import MAX_CHUNK_JOBS, SMALL_CHUNK_BYTES
from callmill.jobs.formats import FORMAT
from callmill.ledger.keys import BATCH, SHARED

_LUA = "callmill.ledger"

READ_BY_ALL = {
    "control": ("control", "full"),
    "unread": ("max_unread_bytes", "released_bytes", "full"),
    "progress": ("phase", "control", "total", "succeeded", "failed", "leased", "ended_ms", "retention_ms"),
}
_FILLED = ("phase", "control", "chunks", "total")

_Keys = TypeVar("_Keys", bound=Struct)
_Arguments = TypeVar("_Arguments", bound=Struct)


def _of_batch(
    name: str,
    keys: type[_Keys],
    arguments: type[_Arguments],
    *,
    answer: type[Struct] | None = None,
    reads: Mapping[str, Sequence[str]] | None = None,
) -> LuaScript[_Keys, _Arguments]:
    """Declare a script about one batch; its first keys are those of ``keys.shared``."""
    return LuaScript(
        _LUA,
        *("line", "batch", name),
        first_keys=SHARED,
        keys=keys,
        arguments=arguments,
        answer=answer,
        reads={**READ_BY_ALL, **(reads or {})},
        constants={"FORMAT": FORMAT, "MAX_CHUNK_JOBS": MAX_CHUNK_JOBS, "SMALL_CHUNK_BYTES": SMALL_CHUNK_BYTES},
        groups={"BATCH": BATCH},
    )


class NoKeys(Struct, frozen=True):
    """No other keys than those of the batch."""


class InLine(Struct, frozen=True):
    """Where the chunk waits."""

    queued: str


class OfMoving(Struct, frozen=True):
    """Where batches are noted that were bound to another API."""

    moving: str


class OneChunk(Struct, frozen=True):
    """A chunk."""

    number: int
    member: str


class CreateKeys(Struct, frozen=True):
    """Where new batches are listed."""

    batches: str
    deadlines: str


class CreateArguments(Struct, frozen=True, kw_only=True):
    """A new batch."""

    batch_id: str
    name: str
    retention_ms: int
    priority: str
    tenant: str
    deadline_ms: int
    max_unread_bytes: int
    own_lines: bool


CREATE = _of_batch("create", CreateKeys, CreateArguments)


class InLines(Struct, frozen=True):
    """Where each of the chunks waits."""

    queued: Sequence[str]


class AddArguments(Struct, frozen=True, kw_only=True):
    """New chunks."""

    first: int
    park: bool
    bindings: Mapping[str, str]
    members: Sequence[str]
    payloads: Sequence[bytes]


class Added(Struct, frozen=True):
    """What came of it."""

    verdict: bytes
    total: int
    chunks: int
    api: bytes
    bound_to: bytes


ADD = _of_batch("add", InLines, AddArguments, answer=Added, reads={"filling": (*_FILLED, "full")})


class SealArguments(Struct, frozen=True, kw_only=True):
    """A batch that is complete, and how many chunks were written."""

    batch_id: str
    chunks: int | None


class Sealed(Struct, frozen=True):
    """What came of it."""

    verdict: bytes
    total: int
    chunks: int


SEAL = _of_batch("seal", NoKeys, SealArguments, answer=Sealed, reads={"filling": _FILLED})


class UnparkArguments(Struct, frozen=True, kw_only=True):
    """How many chunks to queue, and where."""

    batch_id: str
    limit: int
    queued: str


UNPARK = _of_batch("unpark", NoKeys, UnparkArguments, reads={"held": ("control", "phase", "held", "full")})


class ControlArguments(Struct, frozen=True, kw_only=True):
    """What a batch should do."""

    batch_id: str
    control: str
    reason: str


CONTROL = _of_batch("control", NoKeys, ControlArguments, reads={"steered": ("control", "ended_ms")})


class ReleaseArguments(Struct, frozen=True, kw_only=True):
    """What was read of a batch."""

    batch_id: str
    read: str


RELEASE = _of_batch(
    *("release", NoKeys, ReleaseArguments),
    reads={"filled": ("out_bytes", "max_unread_bytes", "full", "control", "released_bytes")},
)


class RetryArguments(Struct, frozen=True, kw_only=True):
    """Which failed jobs of a chunk shall run again."""

    number: int
    member: str
    chosen: bytes


class Retried(Struct, frozen=True):
    """What came of it."""

    jobs: int
    hint_wanted: int


RETRY_FAILED = _of_batch("retry_failed", InLine, RetryArguments, answer=Retried)


class ClaimArguments(Struct, frozen=True, kw_only=True):
    """A worker that wants a chunk."""

    number: int
    member: str
    worker: str
    lease_ms: int


class Claimed(Struct, frozen=True):
    """The chunk, or why the worker does not get it."""

    verdict: bytes
    fence: int
    payload: bytes
    size_bytes: int
    recorded: bytes
    rest: bytes
    claims: int
    now_ms: int
    deadline_ms: bytes
    count: int
    deaths: int
    alone: bytes
    alone_deaths: int
    name: bytes


CLAIM = _of_batch("claim", InLine, ClaimArguments, answer=Claimed)


class SuspectArguments(Struct, frozen=True, kw_only=True):
    """What of a chunk runs alone."""

    number: int
    fence: int
    alone: str


SUSPECT = _of_batch("suspect", NoKeys, SuspectArguments)


class SlowJob(Struct, frozen=True):
    """One of the slowest jobs."""

    latency_us: int
    name: str


class CommitArguments(Struct, frozen=True, kw_only=True):
    """A bundle of outcomes of a chunk, and whether it is given up."""

    number: int
    member: str
    fence: int
    bundle: bytes
    recorded: Sequence[int]
    failed: Sequence[int]
    failures: bytes
    causes: Mapping[str, int]
    slowest: Sequence[SlowJob]
    latencies: Mapping[int, int]
    retries: int
    calls: int
    throttled: int
    finish: bool
    delay_ms: int
    rest: bytes
    deaths: int


class Committed(Struct, frozen=True):
    """What came of it."""

    verdict: bytes
    control: bytes | None
    floor_us: bytes | None
    recorded: list[int] | None


COMMIT = _of_batch(
    *("commit", InLine, CommitArguments),
    answer=Committed,
    reads={"counters": ("created_ms", "succeeded", "failed", "calls", "retries", "throttled")},
)

REQUEUE = _of_batch("requeue", InLine, OneChunk)


class BindArguments(Struct, frozen=True, kw_only=True):
    """What a batch is bound to from now on."""

    api: str
    binding: str
    own_lines: bool


BIND = _of_batch("bind", OfMoving, BindArguments)


class FollowArguments(Struct, frozen=True, kw_only=True):
    """Chunks that shall be where their batch is bound."""

    queued: str
    since_us: int | None
    members: Sequence[str]


FOLLOW = _of_batch("follow", OfMoving, FollowArguments)

SCRIPTS = (CREATE, ADD, SEAL, UNPARK, CONTROL, RELEASE, RETRY_FAILED, CLAIM, SUSPECT, COMMIT, REQUEUE, BIND, FOLLOW)
