"""How long names and reasons may be: shown, logged, and searched for secrets again and again, at others' cost."""

from __future__ import annotations

from callmill.errors import UsageError

MOST_OF_NAME = 200
"""Characters of a batch's name."""
MOST_OF_REASON = 500
"""Characters of a reason that somebody gives."""


def shortened(text: str, most: int) -> str:
    """Return a text, cut off with an ellipsis where it has more characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def checked_length(text: str, most: int, what: str) -> str:
    """Return a text that people wrote.

    Raises:
        UsageError: It is no text, or longer; the message names it as ``what``.
    """
    if not isinstance(text, str):
        raise UsageError(f"{what}: {type(text).__name__} is no text")
    if len(text) > most:
        raise UsageError(f"{what}: {len(text):,} characters are too many; at most {most}")
    return text


def read_short(raw: bytes, most: int) -> str:
    """Return a text that somebody wrote to Redis, perhaps past every check, cut off where it is longer."""
    return shortened(raw[: 4 * most].decode(errors="replace"), most)
