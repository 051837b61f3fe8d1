"""Dues: what is to be settled with the next exchange, by credential."""

from __future__ import annotations

import math

from msgspec import Struct

from callmill.limits.cost import NOTHING, Columns
from callmill.limits.store import Settlement


class _Due(Struct):
    dearer: list[int]
    unused: list[int]
    since: float = math.inf


class Dues:
    """Units used beyond what was reserved, and units reserved and not used.

    Args:
        taken_back: Columns in which units that were not used are of use again.
        charged: Columns that some limit counts.
    """

    def __init__(self, *, taken_back: frozenset[int], charged: frozenset[int]) -> None:
        self._taken_back = taken_back
        self._charged = charged
        self._by_key: dict[int, _Due] = {}

    def __bool__(self) -> bool:
        return bool(self._by_key)

    def add(self, key: int, start: float, dearer: Columns, unused: Columns) -> None:
        """Owe for a slot of a credential (from 0) that started, or should have, at ``start``."""
        for column in range(1, len(NOTHING) + 1):
            more, less = dearer[column - 1], unused[column - 1]
            if more and column in self._charged:
                self._of(key).dearer[column - 1] += more
            if less and column in self._taken_back:
                due = self._of(key)
                due.unused[column - 1] += less
                due.since = min(due.since, start)

    def settlements(self, now: float) -> list[Settlement]:
        """All that is owed, as the exchange takes it."""
        return [
            Settlement(
                key + 1,
                round((due.since - now) * 1e6) if due.since < math.inf else 0,
                _columns(due.dearer),
                _columns(due.unused),
            )
            for key, due in self._by_key.items()
        ]

    def keep_charges(self, failed: Dues) -> None:
        """Owe again what an exchange may not have taken: charging twice is safe, giving back twice is not."""
        for key, due in failed._by_key.items():
            self.add(key, math.inf, _columns(due.dearer), NOTHING)

    def empty(self) -> Dues:
        """Dues of the same columns with nothing owed."""
        return Dues(taken_back=self._taken_back, charged=self._charged)

    def _of(self, key: int) -> _Due:
        return self._by_key.setdefault(key, _Due([0] * len(NOTHING), [0] * len(NOTHING)))


def _columns(units: list[int]) -> Columns:
    requests, tokens, input_tokens, output_tokens = units
    return (requests, tokens, input_tokens, output_tokens)
