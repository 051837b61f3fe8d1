"""What was learned of an API's limits: beside those that are written down, or instead of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime

from msgspec import Struct

from callmill.config.limit_spec import LimitSpec
from callmill.limits.keys import limit_kind

_PACE, _IN_FLIGHT = "pace:", "in_flight"


class Learned(Struct, frozen=True, kw_only=True):
    """One thing that was learned.

    Attributes:
        owner: What it holds for: key:NAME, model:NAME; empty: all calls.
        per_s: Units a second that are started at most; None: it is about calls in flight.
        refused_per_s: Units a second that the API refused; None: none yet, or it is about calls in flight.
        at_once: Calls in flight at most; None: it is about a pace.
        slow: Whether the API did not refuse, but became slow.
        limit: Which written limit it takes the place of, as its unit and window in seconds; None: none is written.
        since: When it was learned, on Redis's clock.
    """

    owner: str
    per_s: float | None = None
    refused_per_s: float | None = None
    at_once: int | None = None
    slow: bool = False
    limit: tuple[str, int] | None = None
    since: datetime

    def in_words(self, api: str, written: Iterable[LimitSpec]) -> tuple[str, str]:
        """The same for people: what stands before the time since when it is known, and what stands behind it.

        ``written``: the limits that are written down.
        """
        kind, _, name = self.owner.partition(":")
        whose = f" with {kind} {name}" if name else ""
        if self.at_once is not None:
            why = "it becomes slow beyond" if self.slow else "it refuses more"
            return f"learned: {self.at_once} calls at once{whose}", f", {why}"
        rate = f"{self.per_s:.3g}/s"
        spec = next((spec for spec in written if (limit_kind(spec), spec.window_s) == self.limit), None)
        if spec is not None:
            return f"{api} answers 429 at {rate}{whose}", f" though {spec} is configured"
        return f"learned: {rate}{whose}", "" if self.refused_per_s else ", still searching"

    def in_one_line(self, api: str, written: Iterable[LimitSpec]) -> str:
        """The same as a sentence of its own."""
        text = "".join(self.in_words(api, written))
        return text if text.startswith(f"{api} ") else f"{api} has a limit that nobody wrote down; {text}"


def learned(state: Mapping[str, str]) -> list[Learned]:
    """What the fields of a limiter's meta hash tell of it; what a newer Callmill wrote otherwise is left out."""
    return sorted(_read(state), key=lambda found: (found.owner, found.at_once is not None, found.limit or ("", 0)))


def _read(state: Mapping[str, str]) -> Iterator[Learned]:
    for field, value in state.items():
        words = value.split()
        if field.startswith(_PACE) and len(words) == 3:
            yield _pace(field.removeprefix(_PACE), *map(float, words))
        elif field.startswith(_IN_FLIGHT) and len(words) == 3:
            owner = field.removeprefix(_IN_FLIGHT).removeprefix(":")
            yield Learned(owner=owner, at_once=int(words[0]), slow=words[2] == "slow", since=_time(float(words[1])))


def _pace(name: str, per_s: float, since_us: float, refused_per_s: float) -> Learned:
    """``name``: the limit as ``Keys.limit`` ends."""
    *owner, kind, window_s = name.rsplit(":", 2)
    return Learned(
        owner="".join(owner),
        per_s=per_s,
        refused_per_s=refused_per_s or None,
        limit=None if kind in {"learned", "auto"} else (kind, int(window_s)),
        since=_time(since_us),
    )


def _time(us: float) -> datetime:
    return datetime.fromtimestamp(us / 1e6, UTC)
