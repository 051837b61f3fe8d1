"""``callmill status``: one batch, or everything."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import click
import msgspec

from callmill.cli import console
from callmill.cli.cause_words import CauseInWords, in_a_line, top_causes
from callmill.cli.client_session import with_batches
from callmill.cli.embedded_session import data_of_before
from callmill.cli.fleet_now import FleetNow, read_fleet
from callmill.cli.fleet_screen import print_fleet
from callmill.cli.overview_session import open_overview
from callmill.cli.progress_view import progress_panel
from callmill.config.settings import load_settings
from callmill.producer import AsyncClient, Progress


@click.command("status")
@click.argument("batch_id", metavar="[BATCH]", required=False)
@click.option("--limit", default=20, type=click.IntRange(1, 1000), show_default=True, help="Recent batches to show.")
@console.json_option
def status(*, batch_id: str | None, limit: int, as_json: bool) -> None:
    """Show one batch, or everything: what is wrong, the recent batches, APIs and workers."""
    if batch_id is None:
        with data_of_before(load_settings()):
            now = asyncio.run(_everything(limit))
        if as_json:
            console.print_json(now)
        else:
            print_fleet(now, console.stdout(), datetime.now(UTC))
        return
    progress, causes = with_batches(lambda client: _batch(client, batch_id))
    if as_json:
        console.print_json({**msgspec.structs.asdict(progress), "causes": causes})
    else:
        console.stdout().print(progress_panel(progress, failed_of=in_a_line(causes)))


async def _everything(limit: int) -> FleetNow:
    async with open_overview() as overview:
        return await read_fleet(overview, limit)


async def _batch(client: AsyncClient, batch_id: str) -> tuple[Progress, list[CauseInWords]]:
    return await (await client.batch(batch_id)).progress(), await top_causes(client, batch_id)
