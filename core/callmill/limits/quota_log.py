"""QuotaLog: what this process was granted of quotas, so that a Redis that lost its state can be told."""

from __future__ import annotations

from collections.abc import Iterable

from callmill.limits.layout import OF_API, Layout
from callmill.limits.rules import COLUMNS
from callmill.limits.slots import Slot

PARTS = 96
"""A window is remembered in so many parts, as the scripts count it."""


class QuotaLog:
    """Units granted by quota and part of its window; times are those of ``time.monotonic()``."""

    def __init__(self, layout: Layout) -> None:
        self._quotas = [
            (node.owner, COLUMNS[node.clock.spec.unit] - 1, node.clock.window_us / PARTS / 1e6)
            for node in layout.quotas
        ]
        self._units: list[dict[int, int]] = [{} for _ in self._quotas]

    def add(self, slots: Iterable[Slot]) -> None:
        """Take note of granted slots."""
        if self._quotas:
            for slot in slots:
                self._count(slot, 1)

    def take_back(self, slot: Slot) -> None:
        """Forget a slot without a call."""
        if self._quotas:
            self._count(slot, -1)

    def grants(self, now: float) -> list[tuple[int, float, int]]:
        """What still counts: index of the quota, seconds since then, units."""
        found = []
        for index, ((_, _, part_s), units) in enumerate(zip(self._quotas, self._units, strict=True)):
            for part in [part for part in units if (part + 1 + PARTS) * part_s < now]:
                del units[part]
            found += [(index, now - (part + 1) * part_s, count) for part, count in units.items() if count > 0]
        return found

    def _count(self, slot: Slot, sign: int) -> None:
        for (owner, column, part_s), units in zip(self._quotas, self._units, strict=True):
            if owner <= OF_API or owner == slot.key + 1:
                part = int(slot.start // part_s)
                units[part] = units.get(part, 0) + sign * slot.cost.columns[column]
                if len(units) > 2 * PARTS:
                    del units[min(units)]
