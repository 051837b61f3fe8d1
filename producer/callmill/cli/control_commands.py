"""``callmill pause``, ``resume``, ``cancel``, ``seal``, ``retry`` and ``delete``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import click
from msgspec import Struct

from callmill.cli import console
from callmill.cli.asking import confirm, yes_option
from callmill.cli.client_session import with_batches
from callmill.cli.failure_view import where_option
from callmill.cli.figures import counted, printable
from callmill.producer import AsyncBatch, AsyncClient

_FEW_JOBS = 10
"""Up to this many run again without confirmation."""


class _Done(Struct, omit_defaults=True):
    id: str
    action: str
    jobs: int | None = None


def _steer(
    batch_id: str,
    action: str,
    act: Callable[[AsyncBatch], Awaitable[int | None]],
    *,
    as_json: bool,
    ask: Callable[[AsyncBatch], Awaitable[str]] | None = None,
) -> None:
    """Do something to a batch; ``ask`` returns what to confirm first, if anything."""

    async def work(client: AsyncClient) -> int | None:
        batch = await client.batch(batch_id)
        if ask is not None and (what := await ask(batch)):
            confirm(what, yes=False)
        return await act(batch)

    jobs = with_batches(work)
    if as_json:
        console.print_json(_Done(batch_id, action, jobs))
    else:
        click.echo(f"{batch_id}: {action}" if jobs is None else f"{batch_id}: {action}, {counted(jobs, 'job')}")


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
@yes_option
@console.json_option
def cancel(*, batch_id: str, yes: bool, as_json: bool) -> None:
    """End a batch for good: calls in flight finish and are recorded, the rest never start."""
    _steer(batch_id, "cancelled", AsyncBatch.cancel, as_json=as_json, ask=None if yes else _what_cancel_ends)


@click.command("seal")
@click.argument("batch_id", metavar="BATCH")
@console.json_option
def seal(*, batch_id: str, as_json: bool) -> None:
    """Close a batch that its producer left open: what it has runs, nothing is added any more."""
    _steer(batch_id, "sealed", AsyncBatch.seal, as_json=as_json)


@click.command("retry")
@click.argument("batch_id", metavar="BATCH")
@where_option
@yes_option
@console.json_option
def retry(*, batch_id: str, where: str, yes: bool, as_json: bool) -> None:
    """Run failed jobs of a batch again, all or some; their new outcomes replace the old ones."""

    async def ask(batch: AsyncBatch) -> str:
        jobs = (await batch.progress()).failed
        if where:
            jobs = sum(cause.count for cause in await batch.failures(where))
        return f"retry repeats the calls of {counted(jobs, 'failed job')}" if jobs > _FEW_JOBS else ""

    async def act(batch: AsyncBatch) -> int:
        jobs = await batch.retry_failed(where)
        if jobs and (waits_for := (await batch.progress()).limited_by).startswith("no worker"):
            click.echo(
                f"{waits_for}, or `callmill up`; to continue a batch of `callmill run`, use "
                "`callmill run IN.jsonl -o OUT.jsonl --retry-failed`",
                err=True,
            )
        return jobs

    _steer(batch_id, "retried", act, as_json=as_json, ask=None if yes else ask)


@click.command("delete")
@click.argument("batch_id", metavar="BATCH")
@yes_option
@console.json_option
def delete(*, batch_id: str, yes: bool, as_json: bool) -> None:
    """Remove a batch, its jobs and its outcomes. Calls in flight are not recorded."""
    _steer(batch_id, "deleted", AsyncBatch.delete, as_json=as_json, ask=None if yes else _what_delete_removes)


async def _what_cancel_ends(batch: AsyncBatch) -> str:
    progress = await batch.progress()
    left = progress.total - progress.done
    if progress.ended or not left:
        return ""
    return f"cancel ends batch {_named(batch)}: {counted(left, 'job')} will never run"


async def _what_delete_removes(batch: AsyncBatch) -> str:
    progress = await batch.progress()
    if not progress.total:
        return ""
    contents = f"{counted(progress.total, 'job')}, {counted(progress.done, 'outcome')}"
    return f"delete removes batch {_named(batch)}: {contents}"


def _named(batch: AsyncBatch) -> str:
    return f"{batch.id} ({printable(batch.name)})" if batch.name else batch.id
