"""The click commands of the dashboard: ``callmill dashboard``, and the same as a command of Celery."""

from __future__ import annotations

from typing import Any

import click

from callmill.config.celery import app
from callmill.dashboard.access import LOOPBACK
from callmill.dashboard.metrics_site import listen_for_scrapes
from callmill.dashboard.server import DashboardServer
from callmill.errors import CallmillError, InternalError, UsageError


@click.command("dashboard", context_settings={"ignore_unknown_options": True})
@click.option("--address", help="Address to listen on; 127.0.0.1 when left out. Any other needs authentication.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; 5555 when left out, 0: a free one.")
@click.option(
    "--basic-auth",
    multiple=True,
    metavar="USER:PASSWORD",
    help="Who may sign in; repeatable. $FLOWER_BASIC_AUTH says the same, unseen by `ps`.",
)
@click.option(
    "--make-sign-in", is_flag=True, help="Where nobody said who may sign in, make up a password, and print it."
)
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    envvar="CALLMILL_METRICS_PORT",
    help="Serve Prometheus and autoscalers on a port of its own, without a password; 0: a free one.",
)
@click.option(
    "--metrics-address",
    default=LOOPBACK,
    show_default=True,
    envvar="CALLMILL_METRICS_ADDRESS",
    help="Address of that port. Whoever reaches it reads the metrics.",
)
@click.option(
    "--known-host",
    multiple=True,
    envvar="CALLMILL_DASHBOARD_HOSTS",
    metavar="NAME",
    help="Name by which it answers without a sign-in, beside localhost; repeatable. Of no effect with one.",
)
@click.argument("flower_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- FLOWER OPTIONS]")
def dashboard(
    *,
    address: str | None,
    port: int | None,
    basic_auth: tuple[str, ...],
    make_sign_in: bool,
    metrics_port: int | None,
    metrics_address: str,
    known_host: tuple[str, ...],
    flower_options: tuple[str, ...],
) -> None:
    """Run the dashboard: Flower with Callmill's batches and APIs, for this machine alone unless you say otherwise.

    Visitors may pause, resume and cancel batches; --read_only=true forbids that, too.

    Every option of Flower may follow as --name=value, or come as $FLOWER_NAME: --url_prefix=..., --persistent=true.
    """
    given: dict[str, Any] = {
        "address": address,
        "port": port,
        "basic_auth": list(basic_auth) or None,
    }
    try:
        chosen = {name: value for name, value in given.items() if value is not None}
        server = DashboardServer(chosen, flower_options, make_sign_in=make_sign_in, known_hosts=known_host)
        scraped = None
        if metrics_port is not None:
            scraped = listen_for_scrapes(server.metrics, server.scaling, metrics_port, metrics_address, known_host)
    except InternalError:
        raise
    except UsageError as error:
        raise click.UsageError(str(error)) from error
    except CallmillError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"Dashboard on {server.url}{' (read-only)' if server.read_only else ''}")
    if server.made_sign_in:
        user, password = server.made_sign_in.split(":")
        click.echo(f"Sign in as {user} with {password}; FLOWER_BASIC_AUTH=USER:PASSWORD sets one that stays")
    if scraped:
        click.echo(f"Metrics on {scraped}")
    server.run()


@click.command(
    "callmill-flower", context_settings=dashboard.context_settings, params=list(dashboard.params), help=dashboard.help
)
@click.pass_context
def callmill_flower(ctx: click.Context, /, **given: Any) -> None:  # noqa: D103 - its help is the other's
    if ctx.obj.app is not app:
        raise click.UsageError("the dashboard is Callmill's: celery -A callmill.config.celery callmill-flower")
    ctx.invoke(dashboard, **given)


def main() -> None:
    """Run the dashboard; for ``python -m callmill.dashboard``."""
    dashboard(prog_name="callmill dashboard")
