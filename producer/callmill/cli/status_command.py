"""``callmill status``: one batch, or the recent ones."""

from __future__ import annotations

import click
from rich.table import Table

from callmill.cli import console
from callmill.cli.client_session import with_client
from callmill.cli.progress_view import progress_panel, total_text
from callmill.cli.run_report import seconds
from callmill.jobs.traffic import NORMAL
from callmill.producer import AsyncClient, Progress


@click.command("status")
@click.argument("batch_id", metavar="[BATCH]", required=False)
@click.option("--limit", default=20, type=click.IntRange(1, 1000), show_default=True, help="Recent batches to show.")
@console.json_option
def status(*, batch_id: str | None, limit: int, as_json: bool) -> None:
    """Show one batch, or the recent ones."""
    if batch_id is None:
        _show_recent(with_client(lambda client: client.batches(limit)), as_json=as_json)
        return
    progress = with_client(lambda client: _progress(client, batch_id))
    if as_json:
        console.print_json(progress)
    else:
        console.stdout().print(progress_panel(progress))


async def _progress(client: AsyncClient, batch_id: str) -> Progress:
    return await (await client.batch(batch_id)).progress()


def _show_recent(batches: list[Progress], *, as_json: bool) -> None:
    if as_json:
        console.print_json(batches)
    elif not batches:
        click.echo("no batch yet: submit one with `callmill run` or `callmill submit`", err=True)
    else:
        console.stdout().print(batches_table(batches))


def batches_table(batches: list[Progress]) -> Table:
    """Return the batches as a table; their classes where one is not the usual."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("batch", "state"):
        table.add_column(heading, no_wrap=True)
    for heading in ("done", "of", "failed", "rate", "since"):
        table.add_column(heading, justify="right", no_wrap=True)
    classes = any(batch.traffic != NORMAL for batch in batches)
    if classes:
        table.add_column("class", no_wrap=True)
    table.add_column("name", no_wrap=True, overflow="ellipsis")
    for batch in batches:
        rate = f"{batch.rate:,.0f}/s" if not batch.ended else ""
        table.add_row(
            batch.id,
            batch.state.value,
            f"{batch.done:,}",
            total_text(batch),
            f"{batch.failed:,}",
            rate,
            seconds(batch.elapsed),
            *([str(batch.traffic)] if classes else []),
            batch.name,
        )
    return table
