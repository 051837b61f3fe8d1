"""``callmill apis``: shows which API of each name batches and workers use, and moves batches to a new address."""

from __future__ import annotations

from collections.abc import Sequence

import click
from msgspec import Struct
from rich.table import Table

from callmill.cli import console
from callmill.cli.asking import confirm, yes_option
from callmill.cli.client_session import with_batches
from callmill.cli.figures import counted, printable
from callmill.config.profiles import find_profiles, profiles_path
from callmill.config.public_api import ApiAddress
from callmill.config.settings import load_settings
from callmill.errors import UsageError
from callmill.ledger.api_bindings import ApiBindings, Bound
from callmill.ledger.fleet import WorkerStatus
from callmill.producer import AsyncClient
from callmill.producer.submission import publish_hints


class _Row(Struct, frozen=True, kw_only=True):
    """One API; ``here``: it is in the local profiles; ``jobs``: those left in the batches bound to it."""

    api: str
    identity: str
    address: str
    here: bool
    workers: int
    batches: list[str]
    jobs: int


class _Moved(Struct, frozen=True, kw_only=True):
    """What is now bound to the API at ``address``; ``leased``: chunks that workers still hold."""

    api: str
    identity: str
    address: str
    batches: list[str]
    jobs: int
    leased: int


@click.group("apis", invoke_without_command=True)
@console.json_option
@click.pass_context
def apis(context: click.Context, *, as_json: bool) -> None:
    """Show which APIs batches are bound to and workers serve.

    An API is identified by its base URL, plus its profile's account if there is one. Workers skip chunks for another
    API of the same name. Without a subcommand, list each API, its workers and the batches that wait for it.
    """
    if context.invoked_subcommand is not None:
        if as_json:
            raise click.UsageError(f"write --json after {context.invoked_subcommand!r}")
        return
    rows = with_batches(_rows)
    if as_json:
        console.print_json(rows)
    elif rows:
        console.stdout().print(_table(rows))
    else:
        click.echo("no APIs yet: add [apis.NAME] tables to apis.toml and start a worker")


@apis.command("move")
@click.argument("name", metavar="API")
@yes_option
@console.json_option
def move(*, name: str, yes: bool, as_json: bool) -> None:
    """Move waiting batches to an API's new address, after you have changed its base URL.

    The new address comes from the local profiles, or else from the running workers. Every unfinished batch that was
    made for another API of this name is rebound; nothing is lost, and the command can be repeated. Calls in flight
    finish at the old address. Jobs with an absolute URL fail if the new base URL does not cover it.
    """

    async def work(client: AsyncClient) -> _Moved:
        to = await _target(client, name)
        bindings = ApiBindings(client.connection().session)
        others = [
            bound
            for bound in await bindings.unfinished()
            if bound.api == name and bound.to is not None and bound.to.identity != to.identity
        ]
        if others:
            confirm(_fact(name, others), question=f"Send them to {to.address} instead?", yes=yes)
        refs = await bindings.move(name, to)
        await publish_hints(client.connection().hints, refs, "")
        return _Moved(
            api=name,
            identity=to.identity,
            address=to.address,
            batches=[batch_id for bound in others for batch_id in bound.batches],
            jobs=sum(bound.jobs for bound in others),
            leased=sum(bound.leased for bound in others),
        )

    moved = with_batches(work)
    if as_json:
        console.print_json(moved)
    elif not moved.batches:
        click.echo(f"{name}: no batches wait for another API of this name")
    else:
        wait = "waits" if len(moved.batches) == 1 else "wait"
        click.echo(f"{name}: {_counted(moved.batches, moved.jobs)} now {wait} for {moved.address}")
        if moved.leased:
            chunks = "1 chunk is" if moved.leased == 1 else f"{moved.leased:,} chunks are"
            click.echo(
                f"{chunks} still with workers: calls in flight finish at the old address, the rest follows", err=True
            )


async def _rows(client: AsyncClient) -> list[_Row]:
    connection = client.connection()
    workers, bounds = await connection.fleet.workers(), await ApiBindings(connection.session).unfinished()
    here = {name: profile.public_facts().at for name, profile in (find_profiles(load_settings()) or {}).items()}
    announced = {name: api.at for name, api in (await connection.fleet.apis_of(workers)).items()}
    known = {(name, at.identity): at for name, at in [*announced.items(), *here.items()]}
    known |= {(name, at.identity): at for worker in workers for name, at in worker.serves_at.items()}
    known |= {
        (bound.api, bound.to.identity if bound.to else ""): bound.to or ApiAddress("", "any address")
        for bound in bounds
    }
    return [_row(name, at, here, workers, bounds) for (name, _), at in sorted(known.items(), key=lambda item: item[0])]


def _row(
    name: str, at: ApiAddress, here: dict[str, ApiAddress], workers: Sequence[WorkerStatus], bounds: Sequence[Bound]
) -> _Row:
    own = [bound for bound in bounds if bound.api == name and (bound.to.identity if bound.to else "") == at.identity]
    return _Row(
        api=name,
        identity=at.identity,
        address=at.address,
        here=name in here and here[name].identity == at.identity,
        workers=sum(worker.serves(name, at if at.identity else None, worker.only_batch) for worker in workers),
        batches=[batch_id for bound in own for batch_id in bound.batches],
        jobs=sum(bound.jobs for bound in own),
    )


def _table(rows: Sequence[_Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("API", "address", "workers", "batches", "jobs left", ""):
        table.add_column(heading, overflow="fold", justify="left" if heading in {"API", "address", ""} else "right")
    for row in rows:
        counts = (f"{row.workers:,}", f"{len(row.batches):,}", f"{row.jobs:,}")
        table.add_row(row.api, printable(row.address), *counts, "in the local profiles" if row.here else "")
    return table


async def _target(client: AsyncClient, name: str) -> ApiAddress:
    settings = load_settings()
    if (profile := (find_profiles(settings) or {}).get(name)) is not None:
        return profile.public_facts().at
    workers = await client.connection().fleet.workers()
    serving = [worker.serves_at[name] for worker in workers if name in worker.serves_at and not worker.only_batch]
    live = {at.identity: at for at in sorted(serving, key=lambda at: at.address, reverse=True)}
    if len(live) != 1:
        places = " and ".join(sorted(at.address for at in live.values()))
        served = f"workers serve it at {places}" if live else "no worker serves it"
        where = profiles_path(settings) or "config/apis.toml or ./apis.toml"
        raise UsageError(
            f"new address of {name} unknown: no [apis.{name}] in {where}, and {served}; add it, or set CALLMILL_APIS"
        )
    return next(iter(live.values()))


def _fact(name: str, others: Sequence[Bound]) -> str:
    made_for = " and ".join(bound.to.address for bound in others if bound.to is not None)
    batches = [batch_id for bound in others for batch_id in bound.batches]
    made = "was made" if len(batches) == 1 else "were made"
    return f"{_counted(batches, sum(bound.jobs for bound in others))} {made} for {name} at {made_for}"


def _counted(batches: Sequence[str], jobs: int) -> str:
    return f"{counted(len(batches), 'batch', 'batches')} ({counted(jobs, 'job')} left)"
