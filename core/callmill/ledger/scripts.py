"""The ledger's Lua scripts, as text ready to register with a Redis client."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from callmill.jobs.formats import FORMAT

_WITHOUT_BATCH = frozenset(
    {"renew", "due", "stranded", "report", "touch", "prune_lines", "labels", "alert_tell", "alert_next"}
)


_WITH_LINES = frozenset({"renew"})
"""Of these, those that must know for which API a chunk waits."""


@cache
def script(name: str) -> str:
    """Return the text of ``lua/<name>.lua``, with what all scripts of a batch share in front."""
    folder = files("callmill.ledger") / "lua"
    text = (folder / f"{name}.lua").read_text()
    if name in _WITHOUT_BATCH - _WITH_LINES:
        return text
    text_of_lines = (folder / "line.lua").read_text()
    if name in _WITH_LINES:
        return text_of_lines + text
    return f"local FORMAT = {FORMAT}\n" + text_of_lines + (folder / "batch.lua").read_text() + text
