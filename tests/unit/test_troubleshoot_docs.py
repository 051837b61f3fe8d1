"""The pages for operators quote what the programs really print."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOLE = "…"
MENTIONED = re.compile(r"http_\d{3}|paused|permissions|doctor|enforcer|CALLMILL_\w+")
"""What stands in these columns as code and is no sentence of a program."""

PAGES = {
    "troubleshoot.md": ("it says", "what limits it", "code or text", "what"),
    "upgrade.md": ("what",),
}


def literals() -> Iterator[str]:
    """Yield every text of the code, with a hole where something varies."""
    for path in sorted(ROOT.glob("*/callmill/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else HOLE for part in node.values)
                yield "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.sub(r"%[-.0-9]*[sdrf]", HOLE, node.value)


TEXTS = list(dict.fromkeys(literals()))


def quoted(page: str, columns: tuple[str, ...]) -> Iterator[str]:
    """Yield what stands as code in the columns of a page's tables that tell what programs say."""
    wanted: list[int] = []
    for line in (ROOT / "docs/operate" / page).read_text().splitlines():
        if not line.startswith("|"):
            wanted = []
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not wanted:
            wanted = [at for at, cell in enumerate(cells) if cell in columns] or [-1]
        elif wanted != [-1]:
            for at in wanted:
                yield from re.findall(r"`([^`]+)`", cells[at])


QUOTED = [(page, text) for page, columns in PAGES.items() for text in quoted(page, columns)]


@pytest.mark.parametrize(("page", "text"), [pair for pair in QUOTED if not MENTIONED.fullmatch(pair[1])])
def test_what_a_page_quotes_is_what_the_code_says(page, text):
    """Each quoted text stands in the code, with the same words around what varies."""
    fragments = [fragment.strip() for fragment in text.split(HOLE) if len(fragment.strip()) > 2]
    assert fragments, f"{page}: {text} quotes nothing"
    assert any(in_order(fragments, known) for known in TEXTS), f"{page}: {text}"


def in_order(fragments: list[str], known: str) -> bool:
    """Say whether a text has all fragments, one behind the other."""
    at = 0
    for fragment in fragments:
        found = known.find(fragment, at)
        if found < 0:
            return False
        at = found + len(fragment)
    return True


def test_the_tables_are_read():
    """There are dozens of quotes: a change of the tables' heads would leave them unread."""
    assert len(QUOTED) > 40
