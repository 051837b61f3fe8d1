"""KeyRing: the credentials of an API, and which of them are set aside."""

from __future__ import annotations

from collections.abc import Sequence
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

    def aside(self, key: int, now: float) -> SetAside | None:
        """Why and until when a credential is not used; None when it is."""
        if not self._aside:
            return None
        found = self._aside.get(key)
        return found if found is not None and found.until > now else None

    def usable_from(self, now: float) -> float:
        """When the next call may use some credential."""
        if len(self._aside) < len(self.names):
            return now
        return max(now, min(aside.until for aside in self._aside.values()))

    def pick(self, permits: PermitSet, now: float) -> int | None:
        """The next credential in turn that may be used; None when there is none."""
        if len(self.names) == 1 and not self._aside:
            return 0
        for offset in range(len(self.names)):
            key = (self._next + offset) % len(self.names)
            if self.aside(key, now) is None and permits.free_of(key) > 0:
                self._next = key + 1
                return key
        return None
