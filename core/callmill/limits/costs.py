"""What calls will cost: learned from what calls did cost, for each model by itself.

Two things are learned. What calls of a model cost on average serves calls of which nothing is stated. By how much calls
cost more or less than was stated corrects what is stated, too low at once, too high when that is sure.
"""

from __future__ import annotations

from enum import StrEnum
from math import sqrt

from msgspec import Struct

MEMORY = 200
"""Calls that count: older ones fade, by half in 140 calls."""

TRUSTED_CALLS = 30
_TRUSTED_STEADY_CALLS = 5
_SURE = 0.05
"""Calls whose costs differ little are trusted sooner: when the error of their mean is below this share of it."""

_HEEDED_CALLS = 2
"""From so many calls on, dearer ones than was thought raise what is reserved."""

MARGIN = 1.05
"""Reserved beyond the mean: what is reserved in vain comes back, what is used beyond was used already."""

_OUTLIER = 20
"""One call counts as so many times the mean at most."""

ABSURD = 10
"""A cost above so many whole windows is a mistake of whoever stated it."""

MOST_KINDS = 2_000
"""Kinds of calls (models, times the ways in which costs are stated) of one API that are told apart."""


class Origin(StrEnum):
    """Who stated what a call will cost."""

    GIVEN = "given"
    """The job."""
    HOOK = "hook"
    """The profile's own function."""


class Tally(Struct, frozen=True, array_like=True):
    """Sums over calls, the older ones faded.

    Attributes:
        count: Of the calls.
        tokens: What they cost.
        squares: Of what they cost.
        stated: What was stated that they would cost.
        parted: What those cost of which the part of the answer is known.
        output: That part.
    """

    count: float = 0.0
    tokens: float = 0.0
    squares: float = 0.0
    stated: float = 0.0
    parted: float = 0.0
    output: float = 0.0

    def plus(self, newer: Tally) -> Tally:
        """Return the sums with those of newer calls; no more than ``MEMORY`` calls count in all."""
        if not self.count or not newer.count:
            return self if self.count else newer
        kept = min(1.0, max(0.0, (MEMORY - newer.count) / self.count))
        return Tally(
            self.count * kept + newer.count,
            self.tokens * kept + newer.tokens,
            self.squares * kept + newer.squares,
            self.stated * kept + newer.stated,
            self.parted * kept + newer.parted,
            self.output * kept + newer.output,
        )

    @property
    def mean(self) -> float:
        """What a call cost on average; 0 when none is known."""
        return self.tokens / self.count if self.count else 0.0

    @property
    def trusted(self) -> bool:
        """Whether the mean is known well enough to reserve less than a guess."""
        if self.count >= TRUSTED_CALLS or self.count < _TRUSTED_STEADY_CALLS:
            return self.count >= TRUSTED_CALLS
        variance = max(0.0, self.squares / self.count - self.mean**2)
        return sqrt(variance / self.count) <= _SURE * self.mean


class CostBook:
    """The tallies of one API: what the fleet knew when it was last asked, and what was seen here since then."""

    def __init__(self) -> None:
        self._fleet: dict[str, Tally] = {}
        self._told: dict[str, Tally] = {}
        self._new: dict[str, Tally] = {}

    def __getitem__(self, kind: str) -> Tally:
        fleet = self._fleet.get(kind)
        if fleet is None:
            if kind not in self._new and len(self._fleet) + len(self._new) < MOST_KINDS:
                self._new[kind] = Tally()  # the next exchange asks what others know of it
            fleet = Tally()
        return fleet.plus(self._told.get(kind, _EMPTY)).plus(self._new.get(kind, _EMPTY))

    def add(self, kind: str, call: Tally) -> None:
        """Note a call."""
        if kind in self._new or len(self._fleet) + len(self._new) < MOST_KINDS:
            self._new[kind] = self._new.get(kind, _EMPTY).plus(call)

    @property
    def has_news(self) -> bool:
        """Whether there is something to tell or to ask."""
        return bool(self._new)

    def tell(self) -> dict[str, Tally]:
        """Return what is new; ``heard`` or ``unheard`` follows."""
        self._told, self._new = self._new, {}
        return self._told

    def heard(self, fleet: dict[str, Tally]) -> None:
        """Take over what the fleet knows, what was told included."""
        self._fleet.update(fleet)
        self._told = {}

    def unheard(self) -> None:
        """Keep what could not be told, for the next time."""
        self._new = {
            kind: self._told.get(kind, _EMPTY).plus(self._new.get(kind, _EMPTY)) for kind in {**self._told, **self._new}
        }
        self._told = {}


class CostEstimator:
    """Says what calls of one API will cost.

    Args:
        book: What is known.
        corrects: Whether stated costs are corrected; not where the server itself goes by them.

    Attributes:
        largest: What no call may cost, the smallest window's amount: nothing is taken to be dearer.
    """

    def __init__(self, book: CostBook, *, largest: int = 1, corrects: bool = True) -> None:
        self._book = book
        self.largest = largest
        self._corrects = corrects

    def of_stated(self, model: str, origin: Origin, tokens: int, output_tokens: int | None) -> tuple[int, int | None]:
        """Return what a call will cost of which that is stated; the part of the answer is None when nobody knows."""
        factor = self._factor(_kind(origin, model)) if self._corrects and tokens else 1.0
        corrected = tokens if factor == 1.0 else max(1, min(round(tokens * factor), max(tokens, self.largest)))
        if output_tokens is None:
            return corrected, self.output_part(model, corrected)
        return corrected, min(corrected, round(output_tokens * factor))

    def of_unknown(self, model: str, guess: int) -> tuple[int, int | None]:
        """Return what a call will cost of which nothing is stated: learned, or the guess while too little is known."""
        tally = self._book[_kind(None, model)]
        if tally.trusted:
            tokens = round(tally.mean * MARGIN)
        else:
            tokens = max(guess, round(tally.mean)) if tally.count >= _HEEDED_CALLS else guess
        tokens = min(tokens, self.largest)
        return tokens, self.output_part(model, tokens)

    def output_part(self, model: str, tokens: int) -> int | None:
        """Return the part of the answer; None when nobody knows."""
        tally = self._book[_kind(None, model)]
        return min(tokens, round(tokens * tally.output / tally.parted)) if tally.parted else None

    def learn(self, model: str, stated: tuple[Origin, int] | None, tokens: int, output_tokens: int | None) -> None:
        """Take note of what a call cost, and of what was stated before."""
        real = self._bounded(self._book[_kind(None, model)], tokens)
        parted, output = (0.0, 0.0) if output_tokens is None else (real, real * output_tokens / max(1, tokens))
        self._book.add(_kind(None, model), Tally(1.0, real, real * real, 0.0, parted, min(parted, output)))
        if stated is not None and self._corrects and stated[1] > 0:
            kind = _kind(stated[0], model)
            real = self._bounded(self._book[kind], tokens)
            self._book.add(kind, Tally(1.0, real, real * real, float(stated[1]), 0.0, 0.0))

    def _bounded(self, tally: Tally, tokens: int) -> float:
        most = self.largest if tally.count < _TRUSTED_STEADY_CALLS else min(self.largest, _OUTLIER * tally.mean)
        return max(1.0, min(float(tokens), most))

    def _factor(self, kind: str) -> float:
        tally = self._book[kind]
        if tally.count < _HEEDED_CALLS or tally.stated <= 0:
            return 1.0
        ratio = tally.tokens / tally.stated
        if ratio >= 1:
            return ratio
        return min(1.0, ratio * MARGIN) if tally.count >= TRUSTED_CALLS else 1.0


_EMPTY = Tally()


def _kind(origin: Origin | None, model: str) -> str:
    return f"{origin.value if origin else 'all'}:{model}"
