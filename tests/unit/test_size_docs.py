"""The page on sizes computes what it says: its table follows from its formula."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from callmill.config.api_profile import ApiProfile
from callmill.config.settings import Settings

PAGE = (Path(__file__).parents[2] / "docs/operate/size.md").read_text()
FORMULA = re.search(r"connections / latency  and  ([\d.]+) / ([\d.]+) s", PAGE)
ROWS = [
    [cell.strip() for cell in line.strip("| ").split("|")]
    for line in re.findall(r"^\|.*\|$", PAGE.partition("| API |")[2].partition("\n\n")[0], re.MULTILINE)
    if "---" not in line
]


def number(text: str) -> float:
    """Read a number as the page writes it."""
    return float(text.replace(",", ""))


def seconds(text: str) -> float:
    """Read a latency."""
    value, unit = text.split()
    return float(value) * {"s": 1.0, "ms": 0.001}[unit]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_rows_follow_from_the_formula(row):
    """Calls in flight, the calls of one process and the processes are what the formula makes of the columns before."""
    assert FORMULA
    share, cpu_s = map(float, FORMULA.groups())
    _, *cells = row
    per_s, connections = number(cells[0]), number(cells[2])
    latency_s = seconds(cells[1])
    one = min(connections / latency_s, share / cpu_s)
    assert number(cells[3]) == pytest.approx(per_s * latency_s, rel=0.005)
    assert number(cells[4]) == pytest.approx(one, rel=0.005)
    assert number(cells[5]) == math.ceil(round(per_s / one, 6)) + 1


def test_page_has_the_defaults():
    """The page names as defaults what the settings and the profiles have as such."""
    assert len(ROWS) >= 5
    connections = ApiProfile.model_fields["max_connections"].default
    assert f"`max_connections` of the API's profile ({connections})" in PAGE
    assert f"`CALLMILL_CALLS_IN_FLIGHT` ({Settings.model_fields['calls_in_flight'].default:,})" in PAGE
