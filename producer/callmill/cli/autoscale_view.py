"""What ``callmill autoscale`` shows: the number, and what it follows from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from callmill.cli.figures import per_second, printable
from callmill.overview.scaling_adviser import ScalingAdvice
from callmill.overview.workers_wanted import ApiWanted


def advice_line(advice: ScalingAdvice, at: datetime) -> str:
    """Return the advice as one line."""
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S}  {_summary(advice)}"


def advice_table(advice: ScalingAdvice) -> RenderableType:
    """Return the number, and below it what each API needs."""
    summary = Text(_summary(advice))
    return Group(summary, Text(), _apis(advice.apis)) if advice.apis else summary


def _summary(advice: ScalingAdvice) -> str:
    noun = "worker" if advice.wanted == 1 else "workers"
    return printable(f"{advice.wanted} {noun} wanted, {advice.workers} at work: {advice.why}")


def _apis(rows: Sequence[ApiWanted]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("api", no_wrap=True)
    for heading in ("waiting", "in flight", "now", "limit", "wanted", "workers"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("why")
    for row in rows:
        table.add_row(
            row.api,
            f"{row.waiting:,}",
            f"{row.in_flight:,}",
            per_second(row.calls_per_s),
            "none" if row.limit_per_s is None else per_second(row.limit_per_s),
            per_second(row.wanted_per_s),
            _share(row.processes),
            printable(row.why),
        )
    return table


def _share(processes: float) -> str:
    # Rounded up: 0 would say that nothing is needed.
    return f"{math.ceil(processes * 100) / 100:.2f}" if processes else "-"
