"""What the ledger should be after any sequence of steps: a plain model, without Redis and without a clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

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
    stream: list[tuple[int, bool]] = field(default_factory=list)
    last_add: tuple[int, list[tuple[str, bytes]]] | None = None

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
        return {f"{self.id}/{chunk.number}/{chunk.api}" for chunk in self.chunks if chunk.place in places}

    def end_if_over(self) -> None:
        """End when every lease is back and nothing is left to do."""
        complete = self.sealed and self.succeeded + self.failed == self.total
        self.ended = self.ended or (not self.leased and (complete or self.cancelled))

    def give_up(self, chunk: ModelChunk, *, delayed: bool = False) -> None:
        """Take a chunk from its holder."""
        chunk.due = False
        delayed = not chunk.open_wanted() and delayed
        if not chunk.unrecorded:
            keep = chunk.failed and not self.cancelled
            chunk.place = Place.DONE_WITH_FAILURES if keep else Place.GONE
        elif self.cancelled:
            chunk.place = Place.GONE
        elif self.control == "paused":
            chunk.place = Place.PARKED
        else:
            chunk.place = Place.WAITING if delayed else Place.QUEUED
        if chunk.place in (Place.DONE_WITH_FAILURES, Place.GONE):
            chunk.forgive(0)
        self.end_if_over()

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
            if chosen and chunk.place in (Place.DONE_WITH_FAILURES, Place.WAITING):
                chunk.due = False
                chunk.place = Place.PARKED if self.control == "paused" else Place.QUEUED
                queued |= {f"{self.id}/{chunk.number}/{chunk.api}"} if chunk.place is Place.QUEUED else set()
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
