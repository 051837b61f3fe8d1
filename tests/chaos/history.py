"""What happened in a storm, as those saw it who took part: one JSON line per event.

Every participant appends to a file of its own with single writes, so that a kill leaves whole lines. Times are Unix
times in seconds, all of one machine. A job is named by its idempotency key.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct


class Call(Struct, frozen=True, tag="call", tag_field="k"):
    """A call as the API saw it.

    Attributes:
        number: The API's own number of the call; its answer tells it.
        worker: Process id of the worker.
        chunk: Member name of the chunk that it belongs to.
        fence: Of the lease under which it was made.
        built_s: When the worker decided to make it.
        began_s: When it had arrived.
        ended_s: When the answer was sent, or the caller had left.
        status: Of the answer; None where no whole one was meant.
        delivered: Whether the caller was still there.
        broken: Whether it broke the API's limit.
    """

    number: int
    api: str
    job: str
    worker: int
    chunk: str
    fence: int
    built_s: float
    began_s: float
    ended_s: float
    status: int | None
    delivered: bool
    broken: bool = False

    @property
    def good(self) -> bool:
        """Whether the API did what was asked for."""
        return self.status == 200


class Lease(Struct, frozen=True, tag="lease", tag_field="k"):
    """A lease granted or renewed; it runs from some moment after ``asked_s``."""

    worker: int
    chunk: str
    fence: int
    asked_s: float


class Commit(Struct, frozen=True, tag="commit", tag_field="k"):
    """A bundle brought to the ledger; ``result`` is ``recorded``, ``refused``, or ``unknown`` where no answer came."""

    worker: int
    chunk: str
    fence: int
    jobs: list[str]
    sent_s: float
    answered_s: float
    result: str


class Read(Struct, frozen=True, tag="read", tag_field="k"):
    """An outcome as a consumer read it; ``call`` is the API's number in the answer."""

    batch: str
    job: str
    ok: bool
    call: int | None
    told: str | None
    cursor: str
    at_s: float
    why: str = ""


class Progress(Struct, frozen=True, tag="progress", tag_field="k"):
    """A batch's counters at one moment, asked of the Redis server itself."""

    batch: str
    at_s: float
    done: int
    total: int
    sealed: bool
    ended: bool


class Snapshot(Struct, frozen=True, tag="snapshot", tag_field="k"):
    """Counters beside bitmaps at one moment: of chunks unfinished by number, (jobs, counted as done, bits set)."""

    batch: str
    at_s: float
    done: int
    total: int
    chunks: dict[int, tuple[int, int, int]]


class Fault(Struct, frozen=True, tag="fault", tag_field="k"):
    """Something broken on purpose; ``worker`` is the process that it befell, ``lost_from_s`` what Redis forgot."""

    name: str
    stream: str
    began_s: float
    ended_s: float
    worker: int = 0
    lost_from_s: float | None = None
    about: str = ""


class Exit(Struct, frozen=True, tag="exit", tag_field="k"):
    """A worker's end."""

    worker: int
    at_s: float
    code: int
    meant: bool
    log: str = ""


class Final(Struct, frozen=True, tag="final", tag_field="k"):
    """A batch when it was over: its counters, its stream from the beginning, and what was left after its deletion."""

    batch: str
    submitted: int
    total: int
    succeeded: int
    failed: int
    leased: int
    ended: bool
    unfinished_chunks: int
    outcomes: list[Read]
    left_over: list[str]


Event = Call | Lease | Commit | Read | Progress | Snapshot | Fault | Exit | Final
_Kind = TypeVar("_Kind")
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Event)


class EventLog:
    """Appends events to a file, each with one write; may be used from several threads."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def write(self, *events: Event) -> None:
        """Append events."""
        os.write(self._file, b"".join(_encoder.encode(event) + b"\n" for event in events))

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


class History:
    """All events of a storm."""

    def __init__(self, events: Iterable[Event], *, lease_s: float) -> None:
        self.lease_s = lease_s
        self._events: dict[type, list[Event]] = {}
        for event in events:
            self._events.setdefault(type(event), []).append(event)
        for kind, field in (
            (Call, "began_s"),
            (Commit, "sent_s"),
            (Read, "at_s"),
            (Progress, "at_s"),
            (Fault, "began_s"),
        ):
            self._events.get(kind, []).sort(key=lambda event, field=field: getattr(event, field))

    def all(self, kind: type[_Kind]) -> list[_Kind]:
        """Return the events of one kind, in the order of their times."""
        return self._events.get(kind, [])  # type: ignore[return-value]


def read_events(folder: Path) -> Iterator[Event]:
    """Yield every event of every file in a folder; what a kill left of a line is passed over."""
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_bytes().split(b"\n")[:-1]:
            yield _decoder.decode(line)
