"""The ledger's Lua scripts, as text ready to register with a Redis client."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from callmill.jobs.formats import FORMAT

_WITHOUT_BATCH = frozenset(
    {"renew", "due", "stranded", "report", "touch", "prune_lines", "labels", "alert_tell", "alert_next"}
)


@cache
def script(name: str) -> str:
    """Return the text of ``lua/<name>.lua``, with what all scripts of a batch share in front."""
    folder = files("callmill.ledger") / "lua"
    text = (folder / f"{name}.lua").read_text()
    if name in _WITHOUT_BATCH:
        return text
    return f"local FORMAT = {FORMAT}\n" + (folder / "batch.lua").read_text() + text
