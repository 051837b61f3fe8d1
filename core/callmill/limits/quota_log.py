"""QuotaLog: what this process was granted of quotas, so that a Redis that lost its state can be told."""

from __future__ import annotations

from callmill.limits.cost import Columns
from callmill.limits.layout import OF_API, Layout
from callmill.limits.rules import COLUMNS

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

    def count(self, key: int, start: float, columns: Columns, sign: int = 1) -> None:
        """Note a slot of a credential (from 0) that was granted; ``sign`` -1: forget one that no call takes."""
        for (owner, column, part_s), units in zip(self._quotas, self._units, strict=True):
            if owner <= OF_API or owner == key + 1:
                part = int(start // part_s)
                units[part] = units.get(part, 0) + sign * columns[column]
                if len(units) > 2 * PARTS:
                    del units[min(units)]

    def grants(self, now: float) -> list[tuple[int, float, int]]:
        """What still counts: index of the quota, seconds since then, units."""
        found = []
        for index, ((_, _, part_s), units) in enumerate(zip(self._quotas, self._units, strict=True)):
            for part in [part for part in units if (part + 1 + PARTS) * part_s < now]:
                del units[part]
            found += [(index, now - (part + 1) * part_s, count) for part, count in units.items() if count > 0]
        return found
