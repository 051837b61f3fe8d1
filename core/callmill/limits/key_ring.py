"""KeyRing: the credentials of an API, and which of them are set aside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from time import monotonic
from typing import NamedTuple

from callmill.limits.permits import PermitSet


class SetAside(NamedTuple):
    """A credential that no call uses for now."""

    until: float
    reason: str


class KeyRing:
    """The credentials of one API as this process knows them; times are those of ``time.monotonic()``."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._aside: dict[int, SetAside] = {}
        self._full: set[int] = set()
        self._next = 0

    def __len__(self) -> int:
        return len(self.names)

    def set_aside(self, key: int, until: float, reason: str) -> None:
        """Use a credential no more before ``until``; what is set aside for longer already stays so."""
        current = self._aside.get(key)
        if current is None or until > current.until:
            self._aside[key] = SetAside(until, reason)

    def take_back(self, key: int) -> None:
        """Use a credential again."""
        self._aside.pop(key, None)

    def fill(self, key: int, *, full: bool) -> bool:
        """Stop or resume starting calls with a credential; say whether that is a change."""
        if full == (key in self._full):
            return False
        (self._full.add if full else self._full.discard)(key)
        return True

    def is_full(self, key: int) -> bool:
        """Whether no more calls may start with a credential here."""
        return key in self._full

    @property
    def all_usable(self) -> bool:
        """Whether every credential may be used, as nearly always."""
        return not self._aside and not self._full

    @property
    def any_full(self) -> bool:
        """Whether there are credentials with which no more calls may start here."""
        return bool(self._full)

    def aside(self, key: int, now: float) -> SetAside | None:
        """Why and until when a credential is not used; None when it is."""
        if not self._aside:
            return None
        found = self._aside.get(key)
        return found if found is not None and found.until > now else None

    def is_usable(self, key: int) -> bool:
        """Whether a credential is not set aside now."""
        return self.aside(key, monotonic()) is None

    def usable_from(self, now: float) -> float:
        """When the next call may use some credential."""
        if not self._full and len(self._aside) < len(self.names):
            return now
        aside = (self._aside.get(key) for key in range(len(self.names)) if key not in self._full)
        return min((now if found is None else max(now, found.until) for found in aside), default=math.inf)

    def pick(self, permits: PermitSet, now: float) -> int | None:
        """The next credential in turn that may be used; None when there is none."""
        if len(self.names) == 1 and not self._aside and not self._full:
            return 0
        for offset in range(len(self.names)):
            key = (self._next + offset) % len(self.names)
            if key not in self._full and self.aside(key, now) is None and permits.free_of(key) > 0:
                self._next = key + 1
                return key
        return None
