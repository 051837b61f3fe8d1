"""``callmill pause``, ``resume``, ``cancel``, ``seal``, ``retry`` and ``delete``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import click
from msgspec import Struct

from callmill.cli import console
from callmill.cli.client_session import with_client
from callmill.cli.failure_view import where_option
from callmill.producer import AsyncBatch, AsyncClient


class _Done(Struct, omit_defaults=True):
    id: str
    action: str
    jobs: int | None = None


def _steer(batch_id: str, action: str, act: Callable[[AsyncBatch], Awaitable[int | None]], *, as_json: bool) -> None:
    async def work(client: AsyncClient) -> int | None:
        return await act(await client.batch(batch_id))

    jobs = with_client(work)
    if as_json:
        console.print_json(_Done(batch_id, action, jobs))
    else:
        click.echo(f"{batch_id}: {action}" if jobs is None else f"{batch_id}: {action}, {jobs:,} jobs")


@click.command("pause")
@click.argument("batch_id", metavar="BATCH")
@console.json_option
def pause(*, batch_id: str, as_json: bool) -> None:
    """Start no further calls of a batch; those in flight finish and are recorded."""
    _steer(batch_id, "paused", AsyncBatch.pause, as_json=as_json)


@click.command("resume")
@click.argument("batch_id", metavar="BATCH")
@console.json_option
def resume(*, batch_id: str, as_json: bool) -> None:
    """Go on with a paused batch."""
    _steer(batch_id, "resumed", AsyncBatch.resume, as_json=as_json)


@click.command("cancel")
@click.argument("batch_id", metavar="BATCH")
@console.json_option
def cancel(*, batch_id: str, as_json: bool) -> None:
    """End a batch for good: calls in flight finish and are recorded, the rest never start."""
    _steer(batch_id, "cancelled", AsyncBatch.cancel, as_json=as_json)


@click.command("seal")
@click.argument("batch_id", metavar="BATCH")
@console.json_option
def seal(*, batch_id: str, as_json: bool) -> None:
    """Close a batch that its producer left open: what it has runs, nothing is added any more."""
    _steer(batch_id, "sealed", AsyncBatch.seal, as_json=as_json)


@click.command("retry")
@click.argument("batch_id", metavar="BATCH")
@where_option
@console.json_option
def retry(*, batch_id: str, where: str, as_json: bool) -> None:
    """Run failed jobs of a batch again, all or some; each gets a further outcome."""
    _steer(batch_id, "retried", lambda batch: batch.retry_failed(where), as_json=as_json)


@click.command("delete")
@click.argument("batch_id", metavar="BATCH")
@console.json_option
def delete(*, batch_id: str, as_json: bool) -> None:
    """Remove a batch, its jobs and its outcomes. Calls in flight are not recorded."""
    _steer(batch_id, "deleted", AsyncBatch.delete, as_json=as_json)
