"""BadLineNotes: what is said of bad lines while a file is read: the first reasons, and what a line needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from callmill.cli.job_line import EXAMPLE

_SHOWN = 3
_LONGEST_REASON = 300


class BadLineNotes:
    """Says the first reasons; all of them are in the output.

    Args:
        path: The input.
        where: The file that has every reason.
        say: Prints a line.
    """

    def __init__(self, path: Path, where: Path, say: Callable[[str], None]) -> None:
        self._path, self._where, self._say = path, where, say
        self._noted = 0
        self._told_form = False

    def note(self, number: int, reason: str, *, is_of_another_form: bool) -> None:
        """Take note of a bad line."""
        self._noted += 1
        if self._noted <= _SHOWN:
            self._say(f"{self._path}: line {number}: {reason[:_LONGEST_REASON]}")
        if is_of_another_form and not self._told_form:
            self._told_form = True
            self._say(
                f"a line needs custom_id, method and url, as in {EXAMPLE}; if your lines are bodies and nothing else, "
                "say where they go: --url /v1/items"
            )
        if self._noted == _SHOWN + 1:
            self._say(f"there are more bad lines; the reason for each is in {self._where}")
