"""Settlements: what one group of calls owes to its limits, and they to it, until the next exchange tells Redis."""

from __future__ import annotations

import math
from time import monotonic

from msgspec import Struct

from callmill.limits.cost import NOTHING, Columns, Cost, beyond
from callmill.limits.layout import Layout
from callmill.limits.quota_log import QuotaLog
from callmill.limits.reservation import Settlement
from callmill.limits.rules import COLUMNS

SETTLE_WITHIN_S = 0.250


class _Sum(Struct):
    dearer: list[int]
    unused: list[int]
    since: float = math.inf


class Settlements:
    """Units used beyond what was reserved, and units reserved and not used, by credential (from 0).

    Attributes:
        due_at: When Redis is to be told at the latest (``time.monotonic()``); infinite while nothing is owed.
        quota_log: What was granted of quotas and not taken back.
    """

    def __init__(self, layout: Layout) -> None:
        self.due_at = math.inf
        self.quota_log = QuotaLog(layout)
        self._taken_back = layout.taken_back()
        self._charged = _charged(layout)
        self._by_key: dict[int, _Sum] = {}

    def use(self, layout: Layout) -> None:
        """Let other limits hold; what is owed stays owed."""
        self.quota_log = QuotaLog(layout)
        self._taken_back, self._charged = layout.taken_back(), _charged(layout)

    def __bool__(self) -> bool:
        return bool(self._by_key)

    def settle(self, key: int, start: float, reserved: Cost, used: Cost) -> None:
        """Owe what a call that started, or should have, at ``start`` costs more or less than was reserved for it."""
        if used != reserved:
            self.owe(key, start, beyond(used.columns, reserved.columns), beyond(reserved.columns, used.columns))

    def void(self, key: int, start: float, reserved: Cost) -> None:
        """Owe back all that was reserved: no call takes the slot."""
        self.quota_log.count(key, start, reserved.columns, -1)
        self.owe(key, start, NOTHING, reserved.columns)

    def owe(self, key: int, start: float, dearer: Columns, unused: Columns) -> None:
        """Owe units used beyond what was reserved, and units not used; what no limit counts is left out."""
        for column in range(1, len(NOTHING) + 1):
            more, less = dearer[column - 1], unused[column - 1]
            if more and column in self._charged:
                self._of(key).dearer[column - 1] += more
            if less and column in self._taken_back:
                due = self._of(key)
                due.unused[column - 1] += less
                due.since = min(due.since, start)

    def take(self, now: float) -> list[Settlement]:
        """All that is owed, as the exchange takes it; nothing is owed any more."""
        sums, self._by_key, self.due_at = self._by_key, {}, math.inf
        return [
            Settlement(
                key + 1,
                round((due.since - now) * 1e6) if due.since < math.inf else 0,
                _columns(due.dearer),
                _columns(due.unused),
            )
            for key, due in sums.items()
        ]

    def keep_charges(self, failed: list[Settlement]) -> None:
        """Owe again what an exchange may not have told: charging twice is safe, giving back twice is not."""
        for due in failed:
            self.owe(due.key - 1, math.inf, due.dearer, NOTHING)

    def _of(self, key: int) -> _Sum:
        found = self._by_key.get(key)
        if found is None:
            found = self._by_key[key] = _Sum([0] * len(NOTHING), [0] * len(NOTHING))
            self.due_at = min(self.due_at, monotonic() + SETTLE_WITHIN_S)
        return found


def _charged(layout: Layout) -> frozenset[int]:
    """The columns that some limit counts."""
    return frozenset(COLUMNS[node.clock.spec.unit] for node in layout.nodes)


def _columns(units: list[int]) -> Columns:
    requests, tokens, input_tokens, output_tokens = units
    return (requests, tokens, input_tokens, output_tokens)
