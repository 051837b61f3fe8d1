"""OwnRefusals: tells refusals that are a kind of calls' own matter from those that are the whole API's.

A limit of the API refuses whatever call comes when it is used up. A path that always answers 429, or a tenant whose
calls are refused whenever they come, is refused while other calls are taken. From the third refusal in a row of such a
kind on, if others were taken meanwhile, its calls wait by themselves, and the API is not paused for them. All processes
count together: each tells the others what is refused and what is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NamedTuple

from msgspec import DecodeError, Struct, json

from callmill.workers.backoff import full_jitter_s
from callmill.workers.call import Call
from callmill.workers.kinship import path_of

_OWN_FROM = 3
"""Refusals in a row: of calls that a limit of the API meets at random, few are refused so often and none taken."""

_MOST_ROWS = 256
_FORGOTTEN_S = 600.0
_WAVE_S = 0.05
"""Refusals of calls that started together are one."""

_LONGEST_KIND = 300
_decode = json.Decoder(list[str]).decode

_FIRST_WAIT_S, _LONGEST_WAIT_S, _LONGEST_ASKED_S = 0.5, 60.0, 3600.0


class _Row(Struct):
    """Refusals of one kind of calls, of which none was taken in between; times are those of the event loop.

    Attributes:
        began_s: When the first was refused, and ``last_s``, the latest.
        count: Waves of refusals.
        others_taken: Whether calls of other kinds were taken since the first.
        is_own: Whether that was enough to tell that they are its own matter.
    """

    began_s: float
    last_s: float
    count: int = 1
    others_taken: bool = False
    is_own: bool = False


class OwnMatter(NamedTuple):
    """Refusals are the matter of a kind of calls; ``since_s``: for how long already, the first time that shows."""

    since_s: float | None


class OwnRefusals:
    """The refusals of one API's calls in this process; ``now``: the event loop's time in seconds.

    Attributes:
        rows: Those of kinds of which no call was taken since; empty nearly always.
        is_news: Whether the last one is to be told to other processes: it is the first of its wave.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.rows: dict[str, _Row] = {}
        self.is_news = False

    def refused(self, call: Call, began_s: float) -> OwnMatter | None:
        """Count the refusal of a call that began then; None: it may be the matter of the whole API."""
        now_s, found, self.is_news = self._now(), None, False
        for kind in _kinds_of(call):
            self.is_news |= self._count(kind, began_s, now_s)
            row = self.rows[kind]
            if row.others_taken and row.count >= _OWN_FROM:
                known_since_s = found.since_s if found else None
                found = OwnMatter(known_since_s if row.is_own else now_s - row.began_s)
                row.is_own = True
        return found

    def taken(self, call: Call, began_s: float) -> None:
        """The API took a call that began then."""
        self._taken(_kinds_of(call), began_s)

    def heard_refused(self, described: str) -> None:
        """A process, perhaps this one, tells that the API refused a call of these kinds just now."""
        now_s = self._now()
        with suppress(DecodeError):  # from a newer version
            for kind in _decode(described):
                row = self.rows.get(kind)
                if row is None or now_s - row.last_s > _WAVE_S:  # else it is of a wave that was counted
                    self._count(kind[:_LONGEST_KIND], now_s, now_s)

    def heard_taken(self, described: str) -> None:
        """A process, perhaps this one, tells that the API took a call of these kinds just now."""
        if self.rows:
            with suppress(DecodeError):  # from a newer version
                self._taken(_decode(described), self._now())

    def _taken(self, kinds: Iterable[str], began_s: float) -> None:
        for kind in kinds:
            self.rows.pop(kind, None)
        for row in self.rows.values():
            row.others_taken |= began_s > row.began_s

    def _count(self, kind: str, began_s: float, now_s: float) -> bool:
        """Count a refusal of a kind; say whether none was counted a moment ago, so that others are told of it."""
        row = self.rows.get(kind)
        if row is None or now_s - row.last_s > _FORGOTTEN_S:
            self._bound()
            self.rows[kind] = _Row(now_s, now_s)
            return True
        if began_s < row.last_s:
            return False  # it was under way when the last one was refused
        before_s, row.last_s = row.last_s, now_s
        row.count += 1
        return now_s - before_s > _WAVE_S

    def _bound(self) -> None:
        if len(self.rows) >= _MOST_ROWS:
            del self.rows[min(self.rows, key=lambda kind: self.rows[kind].last_s)]


def wait_s(call: Call, asked_s: float | None) -> float:
    """Return how long a call waits by itself before it is made again."""
    return max(min(asked_s or 0.0, _LONGEST_ASKED_S), full_jitter_s(call.throttles, _FIRST_WAIT_S, _LONGEST_WAIT_S))


def described(call: Call) -> str:
    """Return the kinds of a call as other processes understand them."""
    return json.encode(_kinds_of(call)).decode()


def _kinds_of(call: Call) -> tuple[str, ...]:
    traffic = str(call.owner.traffic)
    return traffic, f"{traffic} {call.model} {path_of(call)}"[:_LONGEST_KIND]
