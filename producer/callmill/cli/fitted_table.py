"""FittedTable: rows of figures that fit a terminal of any width, each with a remark.

Where the room is scarce, in this order: the remarks go to lines of their own, figures are shortened, names are cut,
columns are left out, those with the highest ``leave_out`` first. No line is ever wider than the terminal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct
from rich.text import Text

_GAP = 2
_NARROW_GAP = 1
_NAME_FLOORS = (40, 24, 14, 8)
"""A name is cut to no less than this, as long as anything else can give way; the first that fits is taken."""

_FOR_A_REMARK = 3
"""Columns beyond give way to a remark that can then stand beside the others."""

_INDENT = "    "


class Cell(Struct, frozen=True):
    """What stands in a row below one heading, and what stands there where the room is scarce."""

    full: Text
    short: Text


def cell(full: str, short: str | None = None, *, style: str = "") -> Cell:
    """Make a cell of plain text."""
    return Cell(Text(full, style), Text(full if short is None else short, style))


class Column(Struct, frozen=True):
    """One column.

    Attributes:
        right: Its cells stand to the right, as figures do.
        leave_out: Where not all columns fit, those with the highest number go first; 0: it always stays.
        name: Its cells are names, which may be cut.
    """

    heading: str
    right: bool = False
    leave_out: int = 0
    name: bool = False


class Row(Struct, frozen=True):
    """The cells of one thing, and a remark on it; an empty one takes no room."""

    cells: Sequence[Cell]
    remark: Text = Text()


class FittedTable(Struct, frozen=True):
    """Columns and their rows; ``remark`` is the heading of the remarks."""

    columns: Sequence[Column]
    rows: Sequence[Row]
    remark: str


class FittedLines(Struct, frozen=True):
    """The lines of a table: its heading, and those of each row, of which there are one or two."""

    heading: Text
    rows: list[list[Text]]


class _Plan(Struct, frozen=True):
    """One way to lay a table out."""

    columns: Sequence[int]
    short: bool
    beside: bool
    floor: int | None
    gap: int


def fit(table: FittedTable, width: int) -> FittedLines:
    """Return the lines of a table, none of them wider than ``width``."""
    *plans, narrowest = _plans(table)
    plan = next((plan for plan in plans if _least_width(table, plan) <= width), narrowest)
    widths = _widths(table, plan)
    over = sum(widths) + plan.gap * (len(widths) - 1) - width
    for at, least in _floors(table, plan, widths).items():
        cut_off = min(max(0, over), widths[at] - least)
        widths[at] -= cut_off
        over -= cut_off
    return _lines(table, plan, widths, width)


def _least_width(table: FittedTable, plan: _Plan) -> int:
    widths = _widths(table, plan)
    spare = sum(widths[at] - least for at, least in _floors(table, plan, widths).items())
    return sum(widths) + plan.gap * (len(widths) - 1) - spare


def _floors(table: FittedTable, plan: _Plan, widths: Sequence[int]) -> dict[int, int]:
    """Return to what the columns of names may be cut, by their place in the plan."""
    names = [at for at, column in enumerate(plan.columns) if table.columns[column].name]
    return {at: widths[at] if plan.floor is None else min(widths[at], plan.floor) for at in names}


def _plans(table: FittedTable) -> Iterator[_Plan]:
    columns = range(len(table.columns))
    remarks = any(row.remark for row in table.rows)
    for beside in (True, False) if remarks else (False,):
        for short in (False, True):
            for floor in (None, *_NAME_FLOORS[: 2 if beside else 3]):
                yield _Plan(columns, short, beside, floor, _NARROW_GAP if short else _GAP)
        if beside:
            needed = [at for at in columns if table.columns[at].leave_out <= _FOR_A_REMARK]
            yield _Plan(needed, True, beside, _NAME_FLOORS[1], _GAP)
    yield _Plan(columns, True, False, _NAME_FLOORS[-1], _NARROW_GAP)
    for least in sorted({column.leave_out for column in table.columns if column.leave_out}, reverse=True):
        left = [at for at in columns if table.columns[at].leave_out < least]
        yield _Plan(left, True, False, _NAME_FLOORS[-1], _NARROW_GAP)


def _widths(table: FittedTable, plan: _Plan) -> list[int]:
    widths = [
        max(Text(table.columns[at].heading).cell_len, *(_text(row, at, plan).cell_len for row in table.rows), 0)
        for at in plan.columns
    ]
    if plan.beside:
        widths.append(max(len(table.remark), *(row.remark.cell_len for row in table.rows)))
    return widths


def _text(row: Row, column: int, plan: _Plan) -> Text:
    return row.cells[column].short if plan.short else row.cells[column].full


def _lines(table: FittedTable, plan: _Plan, widths: Sequence[int], width: int) -> FittedLines:
    columns = [table.columns[at] for at in plan.columns]
    headings = [Text(column.heading) for column in columns]
    if plan.beside:
        columns, headings = [*columns, Column("")], [*headings, Text(table.remark)]
    heading = _line(columns, headings, widths, plan.gap, width)
    rows = []
    for row in table.rows:
        texts = [_text(row, at, plan) for at in plan.columns] + ([row.remark] if plan.beside else [])
        lines = [_line(columns, texts, widths, plan.gap, width)]
        if row.remark and not plan.beside:
            lines.append(cut(Text.assemble(_INDENT, row.remark), width))
        rows.append(lines)
    return FittedLines(heading, rows)


def _line(columns: Sequence[Column], texts: Sequence[Text], widths: Sequence[int], gap: int, width: int) -> Text:
    line = Text()
    for column, text, room in zip(columns, texts, widths, strict=True):
        shown = cut(text, room)
        space = " " * (room - shown.cell_len)
        line.append_text(Text.assemble(space, shown) if column.right else Text.assemble(shown, space))
        line.append(" " * gap)
    line.rstrip()
    return cut(line, width)


def cut(text: Text, width: int) -> Text:
    """Return a text that is no wider, its end an ellipsis where something was cut."""
    shown = text.copy()
    shown.truncate(max(0, width), overflow="ellipsis")
    return shown
