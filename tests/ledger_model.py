"""What the ledger should be after any sequence of steps: a plain model, without Redis and without a clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from callmill.jobs.line import Line
from callmill.ledger import Claim, Suspect


class Place(StrEnum):
    """Where a chunk is; the letters of the ledger's own states, and what it keeps no state for."""

    QUEUED = "Q"
    LEASED = "L"
    WAITING = "W"
    PARKED = "P"
    DONE_WITH_FAILURES = "D"
    GONE = ""


@dataclass
class ModelChunk:
    """A chunk: jobs by offset, their attempts, and the fence of the newest claim."""

    number: int
    api: str
    first: int
    count: int
    place: Place
    line: str
    due: bool = False
    fence: int = 0
    claims: int = 0
    recorded: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)
    attempts: dict[int, int] = field(default_factory=dict)
    deaths: int = 0
    suspect: Suspect | None = None
    noted_under: int = 0
    wanted: set[int] = field(default_factory=set)
    failures: Counter[int] = field(default_factory=Counter)
    opened: list[int] = field(default_factory=list)
    """Positions in the batch of the jobs that were opened since the batch last looked."""
    waited_in: set[str] = field(default_factory=set)
    """Other lines in which its hints may still be."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "line" and hasattr(self, "waited_in"):
            self.waited_in.add(self.line)
        super().__setattr__(name, value)

    def note_alone(self, offset: int | None) -> None:
        """Note what runs alone under the fence of now."""
        before = self.suspect.deaths if self.suspect and self.suspect.offset == offset else 0
        self.suspect, self.noted_under = Suspect(offset, before), self.fence

    def die(self) -> None:
        """End the lease without a word of its holder."""
        self.deaths += 1
        if self.suspect and self.noted_under == self.fence:
            self.suspect = Suspect(self.suspect.offset, self.suspect.deaths + 1)

    def forgive(self, deaths: int) -> None:
        """Go on with so many deaths; without any, nothing of the chunk is under suspicion."""
        self.deaths, self.suspect = deaths, self.suspect if deaths else None

    def open_failed(self, offsets: set[int]) -> None:
        """Make failed jobs unrecorded again, with no attempt spent."""
        assert offsets <= self.failed
        self.failed -= offsets
        self.recorded -= offsets
        self.attempts = {at: n for at, n in self.attempts.items() if at not in offsets}
        self.opened += [self.first + at for at in offsets]

    def open_wanted(self) -> set[int]:
        """Open what was wanted while a worker held the chunk."""
        wanted, self.wanted = self.wanted, set()
        self.open_failed(wanted)
        return wanted

    @property
    def unrecorded(self) -> set[int]:
        """Offsets without an outcome."""
        return set(range(self.count)) - self.recorded


@dataclass
class ModelBatch:
    """A batch and everything that happened to it."""

    id: str
    held: bool
    sealed: bool = False
    control: str = "run"
    ended: bool = False
    deleted: bool = False
    calls: int = 0
    chunks: list[ModelChunk] = field(default_factory=list)
    bound: dict[str, str] = field(default_factory=dict)
    """API name -> identity of the API that it is bound to."""
    stream: list[tuple[int, bool]] = field(default_factory=list)
    superseded: dict[int, int] = field(default_factory=dict)
    """Position of a job in the batch -> how many outcomes the stream had when the job was last opened."""
    last_add: tuple[int, list[tuple[str, bytes]]] | None = None

    def line(self, api: str) -> str:
        """The line in which its chunks of an API wait from now on."""
        return str(Line(api, identity=self.bound.get(api, "")))

    @property
    def newest(self) -> list[tuple[int, bool]]:
        """What of the stream counts: nothing of a job from before it was opened."""
        return [item for at, item in enumerate(self.stream) if at >= self.superseded.get(item[0], 0)]

    def note_superseded(self) -> None:
        """Note that what the stream has of jobs that were opened is superseded."""
        for chunk in self.chunks:
            self.superseded |= dict.fromkeys(chunk.opened, len(self.stream))
            chunk.opened.clear()

    @property
    def total(self) -> int:
        """Jobs added."""
        return sum(chunk.count for chunk in self.chunks)

    @property
    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self.control == "cancelled"

    @property
    def succeeded(self) -> int:
        """Jobs whose latest outcome is good."""
        return sum(len(chunk.recorded) - len(chunk.failed) for chunk in self.chunks)

    @property
    def failed(self) -> int:
        """Jobs whose latest outcome is an error."""
        return sum(len(chunk.failed) for chunk in self.chunks)

    @property
    def leased(self) -> int:
        """Chunks that workers hold."""
        return sum(chunk.place is Place.LEASED for chunk in self.chunks)

    def members(self, *places: Place) -> set[str]:
        """Names of the chunks that are in one of the places."""
        return {f"{self.id}/{chunk.number}/{chunk.line}" for chunk in self.chunks if chunk.place in places}

    def end_if_over(self) -> None:
        """End when every lease is back and nothing is left to do."""
        complete = self.sealed and self.succeeded + self.failed == self.total
        self.ended = self.ended or (not self.leased and (complete or self.cancelled))

    def give_up(self, chunk: ModelChunk, *, delayed: bool = False) -> None:
        """Take a chunk from its holder."""
        chunk.due = False
        delayed = not chunk.open_wanted() and delayed
        self.note_superseded()
        if not chunk.unrecorded:
            keep = chunk.failed and not self.cancelled
            chunk.place = Place.DONE_WITH_FAILURES if keep else Place.GONE
        elif self.cancelled:
            chunk.place = Place.GONE
        elif self.control == "paused":
            chunk.place = Place.PARKED
        else:
            chunk.place = Place.WAITING if delayed else Place.QUEUED
        if chunk.place in (Place.WAITING, Place.QUEUED, Place.PARKED):
            chunk.line = self.line(chunk.api)
        if chunk.place in (Place.DONE_WITH_FAILURES, Place.GONE):
            chunk.forgive(0)
        self.end_if_over()

    def unpark(self) -> set[str]:
        """Queue what is held back; return the names of these chunks."""
        parked = [chunk for chunk in self.chunks if chunk.place is Place.PARKED]
        for chunk in parked:
            chunk.place, chunk.line = Place.QUEUED, self.line(chunk.api)
        return {f"{self.id}/{chunk.number}/{chunk.line}" for chunk in parked}

    def bind(self, api: str, identity: str) -> None:
        """Bind it to another API of a name, if it is bound to one; its chunks are where they were."""
        if not (self.deleted or self.ended or self.cancelled):
            self.bound |= {api: identity} if api in self.bound else {}

    def follow(self) -> set[str]:
        """Move what is queued or waits to where it is bound; return the names of the chunks that need a hint."""
        moved = set[str]()
        for chunk in [] if self.deleted or self.cancelled else self.chunks:
            if chunk.place in (Place.QUEUED, Place.WAITING) and chunk.line != self.line(chunk.api):
                chunk.line = self.line(chunk.api)
                moved |= {f"{self.id}/{chunk.number}/{chunk.line}"} if chunk.place is Place.QUEUED else set()
        return moved

    def cancel(self) -> None:
        """Drop what nobody holds."""
        self.control = "cancelled"
        for chunk in self.chunks:
            chunk.wanted.clear()
            if chunk.place is not Place.LEASED:
                chunk.place = Place.GONE
        self.end_if_over()

    def retry_failed(self, wanted: Callable[[ModelChunk, int], bool]) -> tuple[int, set[str]]:
        """Open the failed jobs that are wanted; return how many, and the chunks that are queued for it."""
        again, queued = 0, set()
        for chunk in self.chunks:
            chosen = {offset for offset in chunk.failed - chunk.wanted if wanted(chunk, offset)}
            again += len(chosen)
            if chunk.place is Place.LEASED:
                chunk.wanted |= chosen
                continue
            chunk.open_failed(chosen)
            self.note_superseded()
            if chosen and chunk.place in (Place.DONE_WITH_FAILURES, Place.WAITING):
                chunk.due = False
                chunk.place, chunk.line = (
                    Place.PARKED if self.control == "paused" else Place.QUEUED,
                    self.line(chunk.api),
                )
                queued |= {f"{self.id}/{chunk.number}/{chunk.line}"} if chunk.place is Place.QUEUED else set()
        self.ended = self.ended and not again
        return again, queued


@dataclass
class Held:
    """A claim that a worker believes in, whether or not it still holds."""

    batch: ModelBatch
    chunk: ModelChunk
    claim: Claim

    @property
    def holds(self) -> bool:
        """Whether what it commits is recorded."""
        chunk = self.chunk
        return not self.batch.deleted and chunk.place is Place.LEASED and chunk.fence == self.claim.fence
