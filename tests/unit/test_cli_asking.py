"""What is asked before something costs money or is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import threading

import click
import pytest
from click import termui
from click.testing import CliRunner

from callmill.cli import asking
from callmill.errors import UsageError


@click.command()
@asking.yes_option
def drop(*, yes):
    """Ask, and say that it is done."""
    asking.confirm("drop removes 3 jobs", yes=yes)
    click.echo("done")


@pytest.mark.parametrize(("answer", "done"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_only_a_yes_goes_on(monkeypatch, answer, done):
    """On a terminal the question names what is lost, and anything but a yes is a no."""
    monkeypatch.setattr(asking, "_has_terminal", lambda: True)
    ended = CliRunner().invoke(drop, input=answer)
    assert "drop removes 3 jobs. Continue?" in ended.stderr
    assert (ended.stdout == "done\n", isinstance(ended.exception, UsageError)) == (done, not done)


def test_without_a_terminal_nothing_hangs():
    """Without a terminal nothing is asked and nothing done: the error names --yes, which does it."""
    ended = CliRunner().invoke(drop)
    assert isinstance(ended.exception, UsageError)
    assert "--yes" in str(ended.exception)
    assert CliRunner().invoke(drop, ["--yes"]).stdout == "done\n"


def test_ctrl_c_ends_the_question(monkeypatch):
    """The first Ctrl-C ends a question that is asked on an event loop, and the loop has its handler back afterwards."""
    handlers = []

    def answer(_):
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(1)  # what waits for keys goes on after a handler that only takes note
        return "y"

    async def ask():
        handlers.append(signal.getsignal(signal.SIGINT))
        try:
            asking.confirm("drop removes 3 jobs", yes=False)
        finally:
            handlers.append(signal.getsignal(signal.SIGINT))

    monkeypatch.setattr(asking, "_has_terminal", lambda: True)
    monkeypatch.setattr(termui, "visible_prompt_func", answer)
    with pytest.raises(click.Abort):
        asyncio.run(ask())
    assert handlers[0] == handlers[1] != signal.default_int_handler
