"""``callmill limits``: every API, its limits, and what its lane does now."""

from __future__ import annotations

from collections.abc import Iterable

import click
from msgspec import Struct
from rich.table import Table

from callmill.cli import console
from callmill.cli.client_session import with_client
from callmill.config.profiles import find_profiles
from callmill.config.public_api import PublicApi
from callmill.config.settings import load_settings
from callmill.ledger.fleet import LaneStatus, WorkerStatus
from callmill.producer import AsyncClient


class _ApiNow(Struct, frozen=True, kw_only=True):
    """An API, its lane summed up over all workers."""

    api: str
    base_url: str
    limits: tuple[str, ...]
    enforcer: str
    burst: int
    workers: int
    in_flight: int
    waiting: int
    limited_by: str | None
    paused_s: float
    pause_reason: str | None


@click.command("limits")
@console.json_option
def limits(*, as_json: bool) -> None:
    """Show every API that workers serve or profiles name: its limits, calls in flight and waiting, and pauses."""
    rows = with_client(_rows)
    if as_json:
        console.print_json(rows)
    elif not rows:
        click.echo("no API is known: write [apis.NAME] tables into apis.toml and start a worker", err=True)
    else:
        console.stdout().print(_table(rows))


async def _rows(client: AsyncClient) -> list[_ApiNow]:
    fleet = client.connection().fleet
    known = await fleet.apis()
    if not known:
        known = {name: profile.public_facts() for name, profile in (find_profiles(load_settings()) or {}).items()}
    workers = await fleet.workers()
    return [_summed_up(known[name], workers) for name in sorted(known)]


def _summed_up(api: PublicApi, workers: Iterable[WorkerStatus]) -> _ApiNow:
    lanes: list[LaneStatus] = [lane for worker in workers for lane in worker.lanes if lane.api == api.name]
    paused = max(lanes, key=lambda lane: lane.paused_s, default=None)
    return _ApiNow(
        api=api.name,
        base_url=api.base_url,
        limits=api.limits,
        enforcer=api.enforcer,
        burst=api.burst,
        workers=len(lanes),
        in_flight=sum(lane.in_flight for lane in lanes),
        waiting=sum(lane.waiting for lane in lanes),
        limited_by=next((lane.limited_by for lane in lanes if lane.limited_by), None),
        paused_s=paused.paused_s if paused else 0.0,
        pause_reason=paused.pause_reason if paused and paused.paused_s else None,
    )


def _table(rows: Iterable[_ApiNow]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("api", "limits", "counted"):
        table.add_column(heading)
    for heading in ("workers", "in flight", "waiting"):
        table.add_column(heading, justify="right")
    table.add_column("now")
    for row in rows:
        table.add_row(
            row.api,
            "\n".join(row.limits) or "none",
            row.enforcer if row.burst == 1 else f"{row.enforcer}, burst {row.burst}",
            str(row.workers),
            f"{row.in_flight:,}",
            f"{row.waiting:,}",
            _now(row),
        )
    return table


def _now(row: _ApiNow) -> str:
    if row.pause_reason is not None:
        return f"paused for {row.paused_s:.0f} s: {row.pause_reason}"
    if not row.workers:
        return "no worker serves it"
    return f"limited by {row.limited_by}" if row.limited_by else ""
