"""Report: the figures as one table for people, and as a file for later comparison."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from api_server import find_nginx
from figure import Figure
from redis_server import server_program

_STREAM = {"figure": 40, "value": 14, "runs": 24, "must": 12, "aim": 12, "verdict": 7, "note": 4}
"""Columns of a table that is printed row by row, and their least widths."""

_HEADINGS = ("figure", "value", "baseline", "ratio", "must", "aim", "verdict", "note")
_PACKAGES = ("callmill", "celery", "pyreqwest", "aiohttp", "requests", "redis", "uvloop")


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as a Markdown table that is aligned for a terminal."""
    rows = [_HEADINGS, *map(_row, figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = [_line(row, widths) for row in rows]
    return "\n".join([lines[0], _line(["-" * width for width in widths], widths), *lines[1:]])


def head() -> str:
    """Return the head of a table whose rows are printed as they come."""
    widths = list(_STREAM.values())
    return f"{_line(list(_STREAM), widths)}\n{_line(['-' * width for width in widths], widths)}"


def row(figure: Figure) -> str:
    """Return one row of that table."""
    runs = ", ".join(_number(run, figure.unit) for run in figure.runs) if len(figure.runs) > 1 else ""
    name, value, _, _, must, aim, verdict, note = _row(figure)
    return _line([name, value, runs, must, aim, verdict, note], list(_STREAM.values()))


def write(path: Path, measured: Mapping[str, Sequence[Figure]], scale: str) -> None:
    """Write what was measured, and what it was measured with."""
    contents = {
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "scale": scale,
        "machine": _machine(),
        "figures": {name: [_as_dict(figure) for figure in figures] for name, figures in measured.items()},
    }
    path.write_bytes(msgspec.json.format(msgspec.json.encode(contents), indent=2) + b"\n")


def _as_dict(figure: Figure) -> dict[str, Any]:
    computed = {"value": figure.value, "baseline": figure.baseline, "ratio": figure.ratio, "verdict": figure.verdict}
    return {**msgspec.to_builtins(figure), **computed}


def _machine() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "redis": _said_by([server_program(), "--version"]),
        "nginx": _said_by([nginx, "-v"]) if (nginx := find_nginx()) else None,
        "packages": {name: version(name) for name in _PACKAGES},
    }


def _said_by(command: Sequence[str | Path]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    return done.stdout.strip()


def _row(figure: Figure) -> tuple[str, ...]:
    baseline, ratio = figure.baseline, figure.ratio
    return (
        figure.name,
        f"{_number(figure.value, figure.unit)} {figure.unit}",
        "" if baseline is None else f"{_number(baseline, figure.unit)} {figure.unit}: {figure.baseline_name}",
        "" if ratio is None else f"{_number(ratio)}x",
        _bound(figure, figure.must),
        _bound(figure, figure.aim),
        figure.verdict,
        figure.note,
    )


def _bound(figure: Figure, bound: float | None) -> str:
    if bound is None:
        return ""
    sign = "<=" if figure.better == "lower" else ">="
    return f"{sign} {_number(bound, figure.unit)}{'x' if figure.judged == 'ratio' else f' {figure.unit}'}"


def _number(value: float, unit: str = "") -> str:
    """Return the number with three digits that mean something, four of a percentage: 99.9 is not 100."""
    if float(value).is_integer() or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.4g}" if unit == "%" else f"{value:.3g}"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"
