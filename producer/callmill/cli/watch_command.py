"""``callmill watch``: everything, live; or one batch until it is over."""

from __future__ import annotations

import asyncio

import click

from callmill.cli import console
from callmill.cli.client_session import find_batch, with_client
from callmill.cli.fleet_displays import display_for
from callmill.cli.fleet_watch import watch_fleet
from callmill.cli.progress_view import ProgressView, progress_panel
from callmill.errors import RedisUnavailableError
from callmill.producer import AsyncClient, Progress

_EVERY_S = 0.5


@click.command("watch")
@click.argument("batch_id", metavar="[BATCH]", required=False)
@click.option("--newest", is_flag=True, help="Follow the newest batch.")
@console.json_option
def watch(*, batch_id: str | None, newest: bool, as_json: bool) -> None:
    """Watch everything until Ctrl-C: batches, APIs, workers, and what is wrong. With --json, a line each second.

    With BATCH or --newest, follow that batch until it is over: exit code 0 when every job succeeded, else 1; with
    --json, a line each half second. Ctrl-C leaves it running.
    """
    if batch_id is not None and newest:
        raise click.UsageError("give either a BATCH or --newest")
    if batch_id is None and not newest:
        asyncio.run(watch_fleet(display_for(console.stdout(), as_json=as_json)))
        return
    progress = with_client(lambda client: _watch(client, batch_id, as_json=as_json))
    raise SystemExit(0 if progress.succeeded == progress.total and progress.state.value == "done" else 1)


async def _watch(client: AsyncClient, batch_id: str | None, *, as_json: bool) -> Progress:
    batch = await find_batch(client, batch_id)
    output = console.stdout()
    progress, away = await batch.progress(), False
    with ProgressView(output, quiet=as_json) as view:
        while True:
            if as_json and not away:
                console.print_json(progress)
            view.show(progress, last=progress.ended)
            if progress.ended:
                break
            await asyncio.sleep(_EVERY_S)
            try:
                progress, away = await batch.progress(), False
            except RedisUnavailableError as error:
                if not away:
                    console.say_line(f"callmill: {error}; this goes on when it is back")
                away = True
    if output.is_terminal and not as_json:
        output.print(progress_panel(progress))
    return progress
