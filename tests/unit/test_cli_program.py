"""The command itself: its sub-commands, its errors, what it costs to ask for help."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from callmill.cli import program
from callmill.cli.worker_command import worker
from callmill.errors import ConfigurationError, InternalError, RedisUnavailableError

EXIT_CODES = {ConfigurationError("wrong"): 2, RedisUnavailableError("away"): 1}


@pytest.mark.parametrize("name", [name for name in program._COMMANDS if name != "dashboard"])
def test_commands_are_there(name):
    """Every command of the list exists under its name and has a help text."""
    module, _, attribute = program._COMMANDS[name][0].partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert isinstance(command, click.Command)
    assert command.name == name
    assert command.help


def test_help_is_light():
    """Asking for help imports no part but the command line's first module."""
    code = (
        "import sys; sys.argv = ['callmill', '--help']\n"
        "from callmill.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('celery', 'redis', 'pydantic', 'rich', 'msgspec', 'asyncio') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(name in done.stdout for name in program._COMMANDS)


@pytest.mark.parametrize("error", EXIT_CODES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("debug", [False, True])
def test_errors_are_messages(monkeypatch, error, debug):
    """An error of the user's or of the world is one message and an exit code; a traceback only when asked for."""
    monkeypatch.setenv("CALLMILL_DEBUG", "1" if debug else "")
    result = _run_raising(monkeypatch, error)
    assert result.exit_code == EXIT_CODES[error]
    assert f"callmill: {error}" in result.stderr
    assert ("Traceback" in result.stderr) == debug


def test_bugs_are_not_hidden(monkeypatch):
    """An internal error keeps its traceback."""
    assert isinstance(_run_raising(monkeypatch, InternalError("bug")).exception, InternalError)


def _run_raising(monkeypatch, error):
    @click.command("fails")
    def fails():
        raise error

    monkeypatch.setitem(program._COMMANDS, "fails", (f"{__name__}:fails", ""))
    monkeypatch.setattr(sys.modules[__name__], "fails", fails, raising=False)
    return CliRunner().invoke(program.callmill, ["fails"])


def test_version_and_unknown_command():
    """The version is told; an unknown command is a usage error."""
    assert CliRunner().invoke(program.callmill, ["--version"]).output.startswith("callmill ")
    assert CliRunner().invoke(program.callmill, ["runn"]).exit_code == 2


def test_missing_part_is_said(monkeypatch):
    """A command whose part is not installed says so."""
    monkeypatch.setitem(program._COMMANDS, "dashboard", ("callmill.cli.missing:dashboard", ""))
    result = CliRunner().invoke(program.callmill, ["dashboard"])
    assert (result.exit_code, "lacks callmill.cli.missing" in result.stderr) == (1, True)


@pytest.mark.parametrize("name", ["", "a b", "a@b", "%h", "w\u00f6rker", "a\nb", "a\n", "a/b", "n" * 65, "n" * 100_000])
def test_names_of_workers_are_bounded(name):
    """A worker's name has no more and no other characters than a tenant's, and the error is as short."""
    result = CliRunner().invoke(worker, ["--name", name])
    assert result.exit_code == 2
    assert "1 to 64 letters" in result.output
    assert len(result.output) < 500


def test_the_longest_name_of_a_worker_is_taken(monkeypatch):
    """A name of 64 letters is none of what stops a worker."""
    monkeypatch.setattr("callmill.cli.worker_command.load_settings", lambda: 1 / 0)
    result = CliRunner().invoke(worker, ["--name", "W-1_a." + "n" * 58])
    assert isinstance(result.exception, ZeroDivisionError)
