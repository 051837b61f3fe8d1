"""Confirmation prompts for commands that cost money or cannot be undone; ``--yes`` skips them."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import click

from callmill.errors import UsageError

yes_option = click.option("--yes", is_flag=True, help="Do not ask for confirmation.")


def confirm(what: str, *, yes: bool, question: str = "Continue?") -> None:
    """Ask for confirmation, unless ``yes``.

    Args:
        what: What the command would do, and what that costs or destroys.
        yes: Whether ``--yes`` was given.
        question: The question that follows.

    Raises:
        UsageError: The answer is no, or there is no terminal to ask on.
    """
    if yes:
        return
    if not _has_terminal():
        raise UsageError(f"{what}: pass --yes to confirm (there is no terminal for a prompt); nothing was done")
    with _interruptible():
        agreed = click.confirm(f"{what}. {question}", err=True)
    if not agreed:
        raise UsageError("nothing was done")


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C end the question: an event loop, whose handler it is else, sees nothing before the answer."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _has_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()  # None where it is closed
