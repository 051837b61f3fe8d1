"""The ``callmill`` command itself: its sub-commands, imported when they are used, and how errors are shown."""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import sys
import traceback
from typing import IO, Any

import click

from callmill.cli import parent_watch
from callmill.errors import CallmillError, InternalError, UsageError

_COMMANDS = {
    "run": ("callmill.cli.run_command:run", "Run a JSONL file of calls, or go on with it."),
    "up": ("callmill.cli.up_command:up", "Run everything on this machine: Redis, workers, dashboard."),
    "worker": ("callmill.cli.worker_command:worker", "Run one worker process."),
    "submit": ("callmill.cli.submit_command:submit", "Submit a JSONL file and print the batch's id."),
    "status": ("callmill.cli.status_command:status", "Show everything, or one batch."),
    "watch": ("callmill.cli.watch_command:watch", "Watch everything live, or one batch until it is over."),
    "outcomes": ("callmill.cli.outcomes_command:outcomes", "Print a batch's outcomes as JSONL."),
    "failures": ("callmill.cli.failures_command:failures", "Show why jobs of a batch failed."),
    "pause": ("callmill.cli.control_commands:pause", "Start no further calls of a batch."),
    "resume": ("callmill.cli.control_commands:resume", "Go on with a paused batch."),
    "cancel": ("callmill.cli.control_commands:cancel", "End a batch for good."),
    "seal": ("callmill.cli.control_commands:seal", "Close a batch that its producer left open."),
    "retry": ("callmill.cli.control_commands:retry", "Run a batch's failed jobs again."),
    "delete": ("callmill.cli.control_commands:delete", "Remove a batch and its outcomes."),
    "limits": ("callmill.cli.limits_command:limits", "Show the APIs, their limits and what they do now."),
    "apis": ("callmill.cli.apis_command:apis", "Show which APIs batches and workers use, or move batches."),
    "autoscale": ("callmill.cli.autoscale_command:autoscale", "Say how many workers the work needs, or run them."),
    "alerts": ("callmill.cli.alerts_command:alerts", "Post a test message to the webhooks of the alerts."),
    "doctor": ("callmill.cli.doctor_command:doctor", "Check settings, Redis, workers and this machine."),
    "dashboard": ("callmill.dashboard.command:dashboard", "Run the dashboard."),
    "simulate": ("callmill.simulator.command:simulate", "Run an API server with strict limits, for dry runs."),
}


class Failure(click.ClickException):
    """A Callmill error as the user sees it: its message, and an exit code by its family."""

    def __init__(self, error: CallmillError) -> None:
        super().__init__(str(error) or type(error).__doc__ or "")
        self._error = error

    @property
    def exit_code(self) -> int:  # type: ignore[override] # a class variable in click, read from the instance
        """2 for what the user can mend, 1 for what the world did."""
        return 2 if isinstance(self._error, UsageError) else 1

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message; the traceback, too, when CALLMILL_DEBUG asks for it."""
        if os.environ.get("CALLMILL_DEBUG", "") not in {"", "0"}:
            click.echo("".join(traceback.format_exception(self._error)), file=file, err=True)
        click.echo(f"callmill: {self.message}", file=file, err=True)


class _LazyGroup(click.Group):
    """Imports a sub-command when it is used: the help needs none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name][0].partition(":")
        if importlib.util.find_spec(module) is None:
            raise click.ClickException(f"this installation lacks {module}")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _COMMANDS[name][1]) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InternalError:
            raise
        except CallmillError as error:
            raise Failure(error) from error


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="callmill", prog_name="callmill", message="%(prog)s %(version)s")
def callmill() -> None:
    """Push very many calls through third-party HTTP APIs: durable, within their limits, one outcome per job."""


def main() -> None:
    """Run the command line; the console script and ``python -m callmill.cli``."""
    parent_watch.begin()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a name that the terminal cannot show is no error
    callmill(prog_name="callmill")
