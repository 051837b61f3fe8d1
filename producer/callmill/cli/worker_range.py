"""How many worker processes, as people write it: ``4``, or ``1-8`` for as many as the work needs."""

from __future__ import annotations

import re

import click
from msgspec import Struct

MOST_WORKERS = 1024
_FORM = re.compile(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?")


class WorkerRange(Struct, frozen=True):
    """From ``least`` to ``most`` processes; ``fixed``: a number, and no range to choose from."""

    least: int
    most: int
    fixed: bool = False


class WorkerNumber(click.ParamType[WorkerRange]):
    """A number of workers, or a range."""

    name = "number"

    def convert(
        self, value: str | WorkerRange, param: click.Parameter | None, ctx: click.Context | None
    ) -> WorkerRange:
        """Return the range; what is none is a usage error that shows the forms that are."""
        if isinstance(value, WorkerRange):
            return value
        match = _FORM.fullmatch(value)
        if match is None:
            self.fail(f"{value!r}: write a number, as in '4', or a range, as in '1-8'", param, ctx)
        least, most = int(match[1]), int(match[2] or match[1])
        fixed = match[2] is None
        if not (least <= most <= MOST_WORKERS and most > 0):
            self.fail(f"{value!r}: from 0 to {MOST_WORKERS}, the smaller number first, and at least 1", param, ctx)
        return WorkerRange(least, most, fixed)
