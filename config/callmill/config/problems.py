"""What pydantic found wrong, in the words of somebody who edits a setting or a profile."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from pydantic_core import ErrorDetails


def describe(error: ErrorDetails) -> str:
    """Say in one sentence what is wrong with a value, never showing the value: it may be a secret."""
    if error["type"] == "missing":
        return "is required"
    message = error["msg"].removeprefix("Value error, ").replace("Input should", "should")
    return message[:1].lower() + message[1:] if message.startswith(("Should", "Unable", "Field")) else message


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Say that a key is unknown, and which one was probably meant."""
    names = sorted(known)
    matches = get_close_matches(key, names, n=1)
    remedy = f"did you mean {matches[0]!r}?" if matches else f"known keys: {', '.join(names)}"
    return f"unknown key; {remedy}"
