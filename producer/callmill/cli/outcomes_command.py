"""``callmill outcomes``: a batch's outcomes as JSONL."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import click

from callmill.cli import console
from callmill.cli.client_session import with_client
from callmill.cli.result_lines import outcome_line
from callmill.errors import UsageError
from callmill.producer import AsyncClient


@click.command("outcomes")
@click.argument("batch_id", metavar="BATCH")
@click.option("--after", help="Only those after this cursor, which an earlier call printed at its end.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="File to write; it must be new.")
@click.option("--release", is_flag=True, help="Drop from Redis what was written; it cannot be read again.")
@console.json_option
def outcomes(*, batch_id: str, after: str | None, output: Path | None, release: bool, as_json: bool) -> None:
    """Print a batch's outcomes as they finish, until it is over, in OpenAI's format; always JSON.

    The cursor after the last one goes to standard error. Outcomes that `callmill run` wrote to its output are released
    and not printed again.
    """
    del as_json  # accepted for the sake of scripts that give it to every command
    with ExitStack() as stack:
        file = sys.stdout.buffer if output is None else stack.enter_context(_new(output))
        cursor = with_client(lambda client: _print(client, batch_id, after, file, release=release))
    if cursor:
        click.echo(f"cursor: {cursor}", err=True)


async def _print(client: AsyncClient, batch_id: str, after: str | None, file: BinaryIO, *, release: bool) -> str | None:
    batch = await client.batch(batch_id)
    cursor = after
    async for bundle in batch.bundles(after, release=release):
        for outcome in bundle:
            file.write(outcome_line(batch_id, outcome))
            cursor = outcome.cursor
        file.flush()
    return cursor


def _new(path: Path) -> BinaryIO:
    try:
        return path.open("xb")
    except FileExistsError as error:
        raise UsageError(f"{path} exists: name another file, or remove it") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error
