"""``callmill alerts``: do alerts arrive?"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence

import click
from msgspec import Struct

from callmill.cli import console
from callmill.config.alert_policy import resolve_webhooks
from callmill.config.profiles import find_alerts, profiles_path
from callmill.config.settings import load_settings
from callmill.errors import ConfigurationError


class _Delivery(Struct, frozen=True):
    """What became of the message to one webhook; the webhook goes by its number, for its URL is a secret."""

    webhook: int
    delivered: bool
    problem: str | None


@click.group("alerts")
def alerts() -> None:
    """Alerts: what workers post to the webhooks of the profiles."""


@alerts.command("test")
@console.json_option
def send_test(*, as_json: bool) -> None:
    """Post a test message to every webhook of [alerts], from here and now.

    Exit code 0 when all of them took it.
    """
    settings = load_settings()
    policy = find_alerts(settings)
    if policy is None:
        where = profiles_path(settings) or "config/apis.toml or ./apis.toml"
        raise ConfigurationError(f"no alerts are configured: write [alerts] and webhook = ... into {where}")
    deliveries = asyncio.run(_post_test(resolve_webhooks(policy)))
    if as_json:
        console.print_json(deliveries)
    else:
        for delivery in deliveries:
            said = "delivered" if delivery.delivered else f"not delivered: {delivery.problem}"
            click.echo(f"webhook {delivery.webhook}: {said}")
    raise SystemExit(0 if all(delivery.delivered for delivery in deliveries) else 1)


async def _post_test(urls: Sequence[str]) -> list[_Delivery]:
    from callmill.workers.alert_sender import post, webhook_transport  # noqa: PLC0415 - seconds of imports
    from callmill.workers.alert_texts import of_test  # noqa: PLC0415 - as above

    transport, alert = webhook_transport(), of_test(socket.gethostname(), int(time.time() * 1000))
    try:
        refusals = [await post(transport, url, alert) for url in urls]
    finally:
        await transport.aclose()
    return [
        _Delivery(number, refusal is None, None if refusal is None else refusal.why)
        for number, refusal in enumerate(refusals, 1)
    ]
