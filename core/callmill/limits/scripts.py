"""The texts of the limiter's scripts, put together from their parts."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

_PARTS = {
    "reserve": ("clock", "quotas", "paces", "adapt", "reserve"),
    "pause": ("clock", "pause"),
    "throttled": ("clock", "adapt", "throttled"),
    "feed": ("clock", "feed"),
    "restore": ("clock", "restore"),
    "permits": ("permits",),
    "control": ("control",),
}


@cache
def script(name: str) -> str:
    """The text of a script, its parts in order."""
    folder = files("callmill.limits") / "lua"
    return "\n".join((folder / f"{part}.lua").read_text() for part in _PARTS[name])
