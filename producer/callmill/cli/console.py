"""Where commands print: data on standard output, everything else on standard error."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

import click
import msgspec
from rich.console import Console

from callmill.config.log_format import set_up_log
from callmill.config.redaction import without_secrets
from callmill.config.settings import Settings

log = logging.getLogger("callmill.cli")

PIPED_WIDTH = 120
# Names, reasons and answers are other people's text: a bracket or a colon in it means nothing.
_AS_WRITTEN: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False}

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def stdout() -> Console:
    """Return a console on standard output; a pipe has a width of its own, so that tables are never folded small."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()  # None where it is closed
    return Console(width=None if is_terminal else PIPED_WIDTH, **_AS_WRITTEN)


def stderr() -> Console:
    """Return a console on standard error."""
    return Console(stderr=True, **_AS_WRITTEN)


def say_line(line: str) -> None:
    """Print a line on standard error; may be called from any thread."""
    click.echo(line, err=True)


def print_json(value: Any) -> None:
    """Print a value as one line of JSON, in UTF-8 whatever the terminal's encoding."""
    click.echo(msgspec.json.encode(value))


def log_sayer(node: str, settings: Settings) -> Callable[[str], None]:
    """Return what prints a program's own lines, and those of its children, the way that the settings ask for.

    As JSON, every line becomes an object but for those that are one already.
    """
    if settings.log_format == "text":
        say_warnings(say_line)
        return lambda line: say_line(without_secrets(line))
    set_up_log(node, level=settings.log_level, style="json")

    def say(line: str) -> None:
        if line.startswith("{"):
            say_line(line)
        else:
            log.log(logging.getLevelName(settings.log_level.upper()), "%s", line, extra={"action": "said"})

    return say


class _Forwarder(logging.Handler):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(f"callmill: {without_secrets(record.getMessage())}")


def say_warnings(say: Callable[[str], None]) -> None:
    """Show what Callmill warns of in this process as lines of the command."""
    logging.getLogger("callmill").handlers[:] = [_Forwarder(say)]
