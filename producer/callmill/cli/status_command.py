"""``callmill status``: one batch, or everything."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import click

from callmill.cli import console
from callmill.cli.client_session import with_client
from callmill.cli.fleet_now import FleetNow, read_fleet
from callmill.cli.fleet_screen import print_fleet
from callmill.cli.overview_session import open_overview
from callmill.cli.progress_view import progress_panel
from callmill.producer import AsyncClient, Progress


@click.command("status")
@click.argument("batch_id", metavar="[BATCH]", required=False)
@click.option("--limit", default=20, type=click.IntRange(1, 1000), show_default=True, help="Recent batches to show.")
@console.json_option
def status(*, batch_id: str | None, limit: int, as_json: bool) -> None:
    """Show one batch, or everything: what is wrong, the recent batches, APIs and workers."""
    if batch_id is None:
        now = asyncio.run(_everything(limit))
        if as_json:
            console.print_json(now)
        else:
            print_fleet(now, console.stdout(), datetime.now(UTC))
        return
    progress = with_client(lambda client: _progress(client, batch_id))
    if as_json:
        console.print_json(progress)
    else:
        console.stdout().print(progress_panel(progress))


async def _everything(limit: int) -> FleetNow:
    async with open_overview() as overview:
        return await read_fleet(overview, limit)


async def _progress(client: AsyncClient, batch_id: str) -> Progress:
    return await (await client.batch(batch_id)).progress()
