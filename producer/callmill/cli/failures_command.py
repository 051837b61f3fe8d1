"""``callmill failures``: why jobs of a batch failed."""

from __future__ import annotations

import click
import msgspec

from callmill.cli import console
from callmill.cli.client_session import with_batches
from callmill.cli.failure_view import causes_table, job_line, retry_hint, where_option
from callmill.jobs import FailureCause
from callmill.producer import AsyncClient


@click.command("failures")
@click.argument("batch_id", metavar="BATCH")
@where_option
@click.option(
    "--jobs", "each", is_flag=True, help="Each failed job instead of the causes; with --json a line for each."
)
@click.option("--retried", is_flag=True, help="With --jobs: also those that were run again and have not failed since.")
@console.json_option
def failures(*, batch_id: str, where: str, each: bool, retried: bool, as_json: bool) -> None:
    """Show why jobs of a batch failed, by cause, or job by job with each of their failures."""
    if retried and not each:
        raise click.UsageError("--retried goes with --jobs")
    if each:
        with_batches(lambda client: _print_jobs(client, batch_id, where, retried=retried, as_json=as_json))
        return
    causes = with_batches(lambda client: _causes(client, batch_id, where))
    if as_json:
        console.print_json(causes)
    elif not causes:
        click.echo("no failed job" + (" of that kind" if where else ""), err=True)
    else:
        console.stdout().print(causes_table(causes))
        click.echo(retry_hint(batch_id, causes), err=True)


async def _causes(client: AsyncClient, batch_id: str, where: str) -> list[FailureCause]:
    return await (await client.batch(batch_id)).failures(where)


async def _print_jobs(client: AsyncClient, batch_id: str, where: str, *, retried: bool, as_json: bool) -> None:
    batch = await client.batch(batch_id)
    async for page in batch.failed_pages(where, include_retried=retried):
        for job in page:
            click.echo(msgspec.json.encode(job) if as_json else job_line(job))
