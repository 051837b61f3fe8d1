"""``callmill doctor``: is everything as it should be?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import suppress

import click
from rich.table import Table
from rich.text import Text

from callmill.cli import console
from callmill.cli.client_session import with_client
from callmill.cli.doctor_checks import check_profiles, check_redis, check_waiting, check_workers
from callmill.cli.overview_session import open_overview
from callmill.config.embedded_server import redis_url
from callmill.config.redaction import redacted
from callmill.config.redis_safety import Finding, Level
from callmill.config.settings import Settings, load_settings
from callmill.errors import ConfigurationError, OutsideError, ServerNotFoundError
from callmill.ledger.fleet import WorkerStatus
from callmill.overview.served import WaitsElsewhere
from callmill.producer import AsyncClient
from callmill.producer.known_apis import Elsewhere

_STYLES = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}


@click.command("doctor")
@console.json_option
def doctor(*, as_json: bool) -> None:
    """Check settings, profiles, credentials, Redis, workers and this machine; say what to do about what is wrong.

    Exit code 0 unless something fails.
    """
    findings = list(_findings())
    if as_json:
        console.print_json(findings)
    else:
        console.stdout().print(_table(findings))
    raise SystemExit(1 if any(finding.level is Level.FAIL for finding in findings) else 0)


def _findings() -> Iterator[Finding]:
    try:
        settings = load_settings()
    except ConfigurationError as error:
        yield Finding(Level.FAIL, "settings", str(error), "mend the variables that are named")
        return
    yield Finding(Level.OK, "settings", "read from the environment")
    yield from check_profiles(settings, _elsewhere(settings))
    try:
        url = redis_url(settings)
    except ServerNotFoundError as error:
        yield Finding(Level.FAIL, "redis", str(error), "`callmill up`, or set CALLMILL_REDIS_URL")
        return
    whose = "embedded server" if settings.redis_url is None else redacted(url)
    yield Finding(Level.OK, "server", whose)
    yield from check_redis(url, settings)
    try:
        yield check_workers(with_client(_workers))
        yield from check_waiting(asyncio.run(_waiting()))
    except OutsideError as error:
        yield Finding(Level.FAIL, "workers", str(error), "mend Redis first")


def _elsewhere(settings: Settings) -> Sequence[Elsewhere]:
    """Return where the fleet uses a name of the local profiles for another API, as far as known."""
    with suppress(OutsideError, ConfigurationError):  # other checks report these
        redis_url(settings)
        return with_client(AsyncClient.known_apis).elsewhere
    return ()


async def _waiting() -> list[WaitsElsewhere]:
    async with open_overview() as overview:
        return [waits for api in await overview.apis() for waits in api.elsewhere]


async def _workers(client: AsyncClient) -> list[WorkerStatus]:
    return await client.connection().fleet.workers()


def _table(findings: list[Finding]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        text = finding.found if not finding.remedy else f"{finding.found}\n-> {finding.remedy}"
        table.add_row(Text(finding.level.value, _STYLES[finding.level]), finding.check, text)
    return table
