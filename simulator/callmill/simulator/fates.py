"""What happens to an accepted call: drawn from a seeded generator, so that a run can be replayed."""

from __future__ import annotations

from enum import StrEnum
from random import Random

from msgspec import Struct

from callmill.simulator.options import SimulatorOptions


class FateKind(StrEnum):
    """How an accepted call ends."""

    ANSWER = "answer"
    ERROR = "error"
    RESET = "reset"
    HANG = "hang"
    NOT_HTTP = "not_http"
    BROKEN_JSON = "broken_json"
    TRUNCATED = "truncated"


_MALFORMED = (FateKind.NOT_HTTP, FateKind.BROKEN_JSON, FateKind.TRUNCATED)


class Fate(Struct, frozen=True):
    """How an accepted call ends.

    Attributes:
        kind: The ending.
        status: HTTP status of an error; 200 otherwise.
        latency_s: Seconds from arrival to the ending; a hang's bound.
    """

    kind: FateKind
    status: int
    latency_s: float


class Fates:
    """The sequence of fates of one run; the same seed gives the same sequence.

    Every call takes two numbers of the fault generator whatever its fate, and latency has a generator of its own, so
    a changed rate or latency leaves the other draws as they were.
    """

    def __init__(self, options: SimulatorOptions, seed: int) -> None:
        self._faults = Random(f"{seed}:faults")  # noqa: S311 - replayable, not secret
        self._latencies = Random(f"{seed}:latencies")  # noqa: S311 - as above
        self._options = options
        rates = (
            (FateKind.ERROR, options.error_rate),
            (FateKind.RESET, options.reset_rate),
            (FateKind.HANG, options.hang_rate),
            *((kind, options.malformed_rate / len(_MALFORMED)) for kind in _MALFORMED),
        )
        self._bounds: list[tuple[float, FateKind]] = []
        bound = 0.0
        for kind, rate in rates:
            bound += rate
            self._bounds.append((bound, kind))

    def draw(self) -> Fate:
        """Draw the next call's fate."""
        point, pick = self._faults.random(), self._faults.random()
        latency_s = self._options.latency.draw_s(self._latencies)
        for bound, kind in self._bounds:
            if point < bound:
                return self._fault(kind, pick, latency_s)
        return Fate(FateKind.ANSWER, 200, latency_s)

    def _fault(self, kind: FateKind, pick: float, latency_s: float) -> Fate:
        if kind is FateKind.ERROR:
            statuses = self._options.error_statuses
            return Fate(kind, statuses[int(pick * len(statuses))], latency_s)
        return Fate(kind, 200, self._options.hang_s if kind is FateKind.HANG else latency_s)
