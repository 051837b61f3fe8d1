"""``callmill outcomes``: a batch's outcomes as JSONL."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import click

from callmill.cli import console
from callmill.cli.client_session import with_batches
from callmill.cli.packed_input import refuse_packed_name
from callmill.cli.result_lines import outcome_line
from callmill.errors import OutsideError, UsageError
from callmill.producer import AsyncClient


@click.command("outcomes")
@click.argument("batch_id", metavar="BATCH")
@click.option("--after", help="Only those after this cursor, which an earlier call printed at its end.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="File to write; it must be new.")
@click.option("--release", is_flag=True, help="Drop from Redis what was written; it cannot be read again.")
@console.json_option
def outcomes(*, batch_id: str, after: str | None, output: Path | None, release: bool, as_json: bool) -> None:
    """Print a batch's outcomes as they finish, until it is over, in OpenAI's format; always JSON.

    For a job that ran again, only the newest outcome is printed.

    The cursor after the last one goes to standard error. Outcomes that `callmill run` wrote to its output are released
    and not printed again.
    """
    if output == Path("-"):
        raise UsageError("-o -: omit -o to write the outcomes to standard output")
    if output is not None:
        refuse_packed_name("-o", output)
    del as_json  # accepted for the sake of scripts that give it to every command
    cursor = with_batches(lambda client: _print(client, batch_id, after, output, release=release))
    if cursor:
        click.echo(f"cursor: {cursor}", err=True)


async def _print(
    client: AsyncClient, batch_id: str, after: str | None, output: Path | None, *, release: bool
) -> str | None:
    batch = await client.batch(batch_id)
    progress = await batch.progress()
    if not progress.ended and progress.limited_by.startswith("no worker"):
        click.echo(f"{batch_id} is not over: {progress.limited_by}", err=True)
    cursor = after
    with ExitStack() as stack:
        file = _standard_output() if output is None else stack.enter_context(_new(output))
        async for bundle in batch.bundles(after, release=release):
            _write(file, [outcome_line(batch_id, outcome) for outcome in bundle], output)
            if bundle:
                cursor = bundle[-1].cursor
    return cursor


def _standard_output() -> BinaryIO:
    if sys.stdout is None:  # where it is closed
        raise UsageError("standard output is closed: name a file with -o")
    return sys.stdout.buffer


def _write(file: BinaryIO, lines: Iterable[bytes], output: Path | None) -> None:
    try:
        file.writelines(lines)
        file.flush()
    except BrokenPipeError:
        raise  # whoever reads has seen enough
    except OSError as error:
        raise OutsideError(f"{output or 'standard output'}: cannot be written: {error.strerror}") from error


def _new(path: Path) -> BinaryIO:
    try:
        return path.open("xb")
    except FileExistsError as error:
        raise UsageError(f"{path} exists: name another file, or remove it") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error
