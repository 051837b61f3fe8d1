"""The texts of the limiter's scripts, put together from their parts."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

FORMAT = 1
"""Version of an API's limiter state. Two limiters that disagree on it would together break the limit: so who is newer
brings the state up to its own version, and who is older then grants nothing more."""

_PARTS = {
    "reserve": ("clock", "quotas", "paces", "adapt", "reserve"),
    "pause": ("clock", "pause"),
    "refused": ("clock", "adapt", "in_flight", "taken", "refused"),
    "feed": ("clock", "feed"),
    "restore": ("clock", "restore"),
    "permits": ("in_flight", "permits"),
    "control": ("control",),
    "costs": ("costs",),
}


@cache
def script(name: str) -> str:
    """The text of a script, its parts in order."""
    folder = files("callmill.limits") / "lua"
    parts = ((folder / f"{part}.lua").read_text() for part in _PARTS[name])
    return "\n".join((f"local FORMAT = {FORMAT}", *parts))
