"""Everything on one screen: a line that sums up, what is wrong, then batches, APIs and workers.

Where the lines do not suffice for all, each of the three tables gets its rows in turn, what matters most first, and its
heading says how many of how many are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import chain

from msgspec import Struct
from msgspec.structs import replace
from rich.console import Console
from rich.text import Text

from callmill.cli.figures import byte_size, counted, in_ascii, printable
from callmill.cli.fitted_table import FittedTable, Row, cut, fit
from callmill.cli.fleet_now import FleetNow
from callmill.cli.fleet_tables import apis_table, batches_table, workers_table

_PROBLEM_LINES = 2
"""A problem is told in so many lines at most; the rest of it is for a wider window."""

_MARK = "! "
_SHARE_OF_PROBLEMS = 4
"""The problems take one line in so many at most."""

_CLOCK_WIDTH = len("00:00:00  ")
_NO_BATCH = "no batch yet: submit one with `callmill run` or `callmill submit`"
_NO_API = "no APIs yet: add [apis.NAME] tables to apis.toml and start a worker"
_NO_WORKER = "no worker"


class _Section(Struct):
    """A table; what one and several of its things are called, how many there are, what is said where there are none."""

    names: tuple[str, str]
    table: FittedTable
    total: int
    empty: str
    shown: int = 0

    def sizes(self, width: int) -> list[int]:
        """Return how many lines each row takes."""
        # With the longest heading there can be, so that rows take no more lines when not all of them are shown.
        heading = f"{self.total:,}/{self.total:,} {self.names[1]}"
        return [len(lines) for lines in fit(self._under(heading, self.table.rows), width).rows]

    def lines(self, width: int) -> list[Text]:
        """Return the heading, which says how many of how many are shown, and the rows that are."""
        if not self.total:
            return [cut(Text(self.empty, "dim"), width)]
        count = f"{self.total:,}" if self.shown == self.total else f"{self.shown:,}/{self.total:,}"
        heading = f"{count} {self.names[self.total != 1]}"
        fitted = fit(self._under(heading, self.table.rows[: self.shown]), width)
        fitted.heading.stylize("bold underline")
        return [fitted.heading, *chain.from_iterable(fitted.rows)]

    def _under(self, heading: str, rows: Sequence[Row]) -> FittedTable:
        first, *others = self.table.columns
        return replace(self.table, columns=[replace(first, heading=heading), *others], rows=rows)


def fleet_screen(now: FleetNow, console: Console, at: datetime, *, height: int | None = None) -> list[Text]:
    """Return the lines of the screen, none wider than the console.

    Args:
        now: What to show; what is old is shown dimmed.
        console: Says how wide it is.
        at: The time now.
        height: How many lines there are; None: as many as are wanted.
    """
    width, now_ms = console.width, int(now.at.timestamp() * 1000)
    sections = [
        _Section(("batch", "batches"), batches_table(now.batches), now.batches_total, _NO_BATCH),
        _Section(("API", "APIs"), apis_table(now.apis), len(now.apis), _NO_API),
        _Section(("worker", "workers"), workers_table(now.workers, now_ms), len(now.workers), _NO_WORKER),
    ]
    title = Text.assemble((f"{at.astimezone():%H:%M:%S}", "bold"), f"  {summary(now, width - _CLOCK_WIDTH)}")
    head = [cut(title, width), *_problems(now, console, height)]
    left = None if height is None else max(0, height - len(head) - len(sections))
    spare = _share_out(sections, width, left)
    body = []
    for section in sections:
        if spare is None or spare >= len(sections):
            body.append(Text())
        body += section.lines(width)
    if now.away:
        for line in body:
            line.stylize("dim")
    return [*head, *body][:height]


def summary(now: FleetNow, width: int | None = None) -> str:
    """Say in a line what there is and what it does; where that is too wide, what matters least is left out."""
    rate = sum(worker.calls_per_s for worker in now.workers)
    parts = [
        counted(len(now.workers), "worker"),
        f"{rate:,.{1 if rate < 100 else 0}f} calls/s",
        f"{now.unfinished:,} of {counted(now.batches_total, 'batch', 'batches')} unfinished",
        f"Redis {byte_size(now.redis.used_bytes)}",
    ]
    if now.redis.max_bytes:
        parts[-1] += f" ({now.redis.used_bytes / now.redis.max_bytes:.0%})"
    if now.problems:
        parts.insert(0, counted(len(now.problems), "problem"))
    while width is not None and len(parts) > 1 and len(", ".join(parts)) > width:
        parts.pop()
    return ", ".join(parts)


def _problems(now: FleetNow, console: Console, height: int | None) -> list[Text]:
    texts = [away_in_words(now)] if now.away else []
    texts += [problem.text for problem in now.problems]
    lines: list[Text] = []
    most = None if height is None else max(_PROBLEM_LINES, height // _SHARE_OF_PROBLEMS)
    for text in texts:
        wrapped = list(Text(printable(text)).wrap(console, max(2, console.width - len(_MARK)), overflow="fold"))
        shown = wrapped[:_PROBLEM_LINES] if height is not None else wrapped
        if len(shown) < len(wrapped):
            shown[-1].append(" …")
        marks = [_MARK, *[" " * len(_MARK)] * len(shown)]
        lines += [cut(Text.assemble(mark, line), console.width) for mark, line in zip(marks, shown, strict=False)]
    for line in lines:
        line.stylize("bold red")
    return lines[:most]


def away_in_words(now: FleetNow) -> str:
    """Say that Redis is away, since when the figures are old, and that it is asked again."""
    return f"{now.away}; trying again. The figures are of {now.at.astimezone():%H:%M:%S}"


def _share_out(sections: Sequence[_Section], width: int, left: int | None) -> int | None:
    """Give each section rows in turn until no line is left; return the lines left."""
    sizes = [section.sizes(width) for section in sections]
    if left is None:
        for section, rows in zip(sections, sizes, strict=True):
            section.shown = len(rows)
        return None
    waiting = [(section, rows) for section, rows in zip(sections, sizes, strict=True) if rows]
    while waiting:
        section, rows = waiting.pop(0)
        if rows[section.shown] > left:
            continue
        left -= rows[section.shown]
        section.shown += 1
        if section.shown < len(rows):
            waiting.append((section, rows))
    return left


def print_fleet(now: FleetNow, console: Console, at: datetime) -> None:
    """Print all of it."""
    for line in fleet_screen(now, console, at):
        console.print(in_ascii(line) if console.options.ascii_only else line, soft_wrap=True)
