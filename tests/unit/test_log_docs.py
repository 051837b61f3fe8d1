"""The page about the log says what the code logs, and every line has an action and no stray form."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from callmill.config.alert_policy import AlertEvent
from callmill.config.log_format import LIBRARY
from callmill.workers.alert_watch import GOOD_NEWS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/logs.md").read_text().partition("## Actions")[2]
ROWS = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", PAGE, re.MULTILINE))
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
TOLD = "alert.event"
"""What the watch of the alerts logs as the action: each event is one."""


def log_calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Yield where each call of a logger stands, its method, and the call."""
    for path in sorted(ROOT.glob("*/callmill/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS:
                owner = node.func.value
                if isinstance(owner, ast.Name) and owner.id in {"log", "_log", "logger", "logging"}:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node.func.attr, node


def action_of(call: ast.Call) -> str | None:
    """Return the action of a call: a constant, or the code that says it."""
    for keyword in call.keywords:
        if keyword.arg == "extra" and isinstance(keyword.value, ast.Dict):
            for key, value in zip(keyword.value.keys, keyword.value.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "action":
                    return str(value.value) if isinstance(value, ast.Constant) else ast.unparse(value)
    return None


def test_every_line_has_an_action():
    """No call of a logger is without an action, and none builds its message by hand."""
    calls = list(log_calls())
    assert len(calls) > 60
    assert [place for place, _, call in calls if action_of(call) is None] == []
    assert [place for place, _, call in calls if any(isinstance(one, ast.JoinedStr) for one in call.args)] == []


def test_page_lists_every_action_with_its_level():
    """The page has each action of the code with its level, and nothing else."""
    levels = defaultdict(set)
    for _, method, call in log_calls():
        levels[action_of(call)].add({"exception": "error"}.get(method, method))
    assert levels.pop(TOLD) == {"log"}
    for event in AlertEvent:
        levels[event.value] = {"info" if event in GOOD_NEWS else "warning"}
    levels |= {"chunk_over": {"info"}, "said": {"info"}, LIBRARY: {"any"}}
    assert {action: {level} for action, level in ROWS.items()} == dict(levels)


def test_nothing_is_printed_past_the_log():
    """Workers, ledger and limits print nothing: what they say passes through the log."""
    folders = ("config", "core", "workers")
    for path in (path for folder in folders for path in ROOT.glob(f"{folder}/callmill/**/*.py")):
        names = {node.func.id for node in ast.walk(ast.parse(path.read_text())) if is_plain_call(node)}
        assert "print" not in names, path


def is_plain_call(node: ast.AST) -> bool:
    """Say whether a node calls something by its bare name."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
