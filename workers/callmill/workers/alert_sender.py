"""AlertSender: posts alerts to webhooks, each in order, until each is there.

The alerts wait in Redis, bounded; each webhook has its own place in them, and one worker at a time tells it. A worker
that dies in between leaves the rest, and what it may have told already, to the next: at least once, with the same id.
No URL is ever logged: it is a secret.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Collection
from datetime import datetime
from typing import NamedTuple

import msgspec
from msgspec import Struct

from callmill.config.alert_policy import AlertPolicy, resolve_webhooks
from callmill.errors import RedisUnavailableError
from callmill.ledger import LedgerSession
from callmill.ledger.alert_log import Alert, AlertLog
from callmill.workers.alert_watch import STUCK_AFTER_S
from callmill.workers.throttling import status_line
from callmill.workers.transports.factory import make_transport
from callmill.workers.transports.port import Transport, TransportFault, TransportOptions

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0
_LOOK_EVERY_S = 1.0
_FIRST_RETRY_S, _LAST_RETRY_S = 1.0, 60.0
_MARGIN_S = 5.0
_GIVEN_UP_AFTER_S = 3600.0
_MOST_BYTES = 65_536
_LATER = frozenset({408, 425, 429})
"""Refusals that another try may mend, as all from 500 on."""

_HEADERS = {"content-type": "application/json", "user-agent": "callmill"}


class AlertTargets(Struct, frozen=True):
    """Whom alerts are told, and which.

    Attributes:
        webhooks: URLs; none: nobody is told.
        events: Those that are told.
        stuck_after_s: Seconds without an outcome after which a batch that should run counts as stuck.
    """

    webhooks: tuple[str, ...] = ()
    events: frozenset[str] = frozenset()
    stuck_after_s: float = STUCK_AFTER_S

    @classmethod
    def of(cls, policy: AlertPolicy | None) -> AlertTargets:
        """Take them from the profiles.

        Raises:
            ConfigurationError: A webhook cannot be read, or is no URL.
        """
        if policy is None:
            return cls()
        return cls(tuple(resolve_webhooks(policy)), frozenset(policy.events), policy.stuck_after)


class Refusal(NamedTuple):
    """Why an alert was not taken, and whether another try may mend it."""

    why: str
    for_good: bool
    after_s: float = 0.0


def open_sender(session: LedgerSession, targets: AlertTargets, worker: str) -> AlertSender:
    """Return the sender of one worker process."""
    transport = webhook_transport()
    return AlertSender(AlertLog(session), targets.webhooks, targets.events, worker=worker, transport=transport)


def webhook_transport() -> Transport:
    """Return what posts to webhooks. Any address is allowed: whoever writes the profiles chose it, no job can."""
    return make_transport(
        "pyreqwest",
        TransportOptions(
            max_connections=2,
            max_response_bytes=_MOST_BYTES,
            allow_private_addresses=True,
            connect_timeout_s=TIMEOUT_S / 2,
        ),
    )


async def post(transport: Transport, url: str, alert: Alert) -> Refusal | None:
    """Post one alert; return why it was not taken, None when it was. Redirects are not followed."""
    try:
        answer = await transport.send("POST", url, _HEADERS, msgspec.json.encode(alert), TIMEOUT_S)
    except TransportFault as fault:
        return Refusal(fault.kind.value, for_good=False)
    if 200 <= answer.status < 300:
        return None
    after = answer.headers.get("retry-after", "")
    after_s = min(float(after), _LAST_RETRY_S) if after.isdecimal() else 0.0
    return Refusal(status_line(answer.status), answer.status < 500 and answer.status not in _LATER, after_s)


class AlertSender:
    """Tells every webhook what is to be told. Belongs to one event loop.

    Args:
        alerts: Where the alerts wait.
        webhooks: Their URLs.
        events: Those that are told; others are passed over.
        worker: Names this process.
        transport: Makes the posts.
        now_s: Unix time in seconds.
    """

    def __init__(
        self,
        alerts: AlertLog,
        webhooks: Collection[str],
        events: Collection[str],
        *,
        worker: str,
        transport: Transport,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._alerts = alerts
        self._webhooks = [_Webhook(number, url) for number, url in enumerate(dict.fromkeys(webhooks), 1)]
        self._events = frozenset(events)
        self._worker = worker
        self._transport = transport
        self._now_s = now_s

    async def run(self) -> None:
        """Send, until cancelled."""
        try:
            await asyncio.gather(*(self._serve(webhook) for webhook in self._webhooks))
        finally:
            await self._transport.aclose()

    async def send_waiting(self) -> float:
        """Send to every webhook what waits for it; return seconds until it is worth trying again."""
        return min([await self._send_waiting(webhook) for webhook in self._webhooks], default=_LOOK_EVERY_S)

    async def _serve(self, webhook: _Webhook) -> None:
        while True:
            try:
                pause_s = await self._send_waiting(webhook)
            except RedisUnavailableError as error:
                log.debug("alerts not looked up: %s", error, extra={"action": "alerts_unread"})
                pause_s = _LOOK_EVERY_S
            except Exception:  # a bug here must not end the worker: its calls matter more
                log.exception("an alert met a bug", extra={"action": "alert_bug", "webhook": webhook.number})
                pause_s = _LAST_RETRY_S
            await asyncio.sleep(pause_s)

    async def _send_waiting(self, webhook: _Webhook) -> float:
        while entries := await self._next(webhook, TIMEOUT_S + _MARGIN_S):
            entry_id, alert = entries[0]
            if alert.event in self._events:
                refusal = await post(self._transport, webhook.url, alert)
                if refusal is not None and not self._is_hopeless(webhook, alert, refusal):
                    return await self._later(webhook, alert, refusal)
            webhook.failures = 0
            webhook.told = entry_id
        return _LOOK_EVERY_S

    async def _next(self, webhook: _Webhook, lease_s: float) -> list[tuple[str, Alert]]:
        entries = await self._alerts.next(webhook.name, self._worker, lease_s=lease_s, told=webhook.told, limit=1)
        webhook.told = ""
        return entries

    def _is_hopeless(self, webhook: _Webhook, alert: Alert, refusal: Refusal) -> bool:
        too_old = self._now_s() - datetime.fromisoformat(alert.at).timestamp() > _GIVEN_UP_AFTER_S
        if not refusal.for_good and not too_old:
            return False
        log.error(
            "alert %s is lost, webhook %d does not take it: %s",
            *(alert.event, webhook.number, refusal.why),
            extra={"action": "alert_lost", "alert": alert.id, "webhook": webhook.number, "reason": refusal.why},
        )
        return True

    async def _later(self, webhook: _Webhook, alert: Alert, refusal: Refusal) -> float:
        delay_s = max(min(_FIRST_RETRY_S * (1 << webhook.failures), _LAST_RETRY_S), refusal.after_s)
        webhook.failures = min(webhook.failures + 1, 10)
        log.warning(
            "alert %s not delivered, webhook %d: %s; again in %.0f s",
            *(alert.event, webhook.number, refusal.why, delay_s),
            extra={"action": "alert_retry", "alert": alert.id, "webhook": webhook.number, "reason": refusal.why},
        )
        await self._next(webhook, delay_s + _MARGIN_S)  # the others keep away until then
        return delay_s


class _Webhook:
    """One webhook, and how it goes with it.

    Attributes:
        name: What Redis calls it: nothing of the URL can be read from it.
        number: What the log calls it.
        told: The last entry that it was told, which Redis may not know of yet.
    """

    def __init__(self, number: int, url: str) -> None:
        self.number = number
        self.url = url
        self.name = hashlib.sha256(url.encode()).hexdigest()[:16]
        self.failures = 0
        self.told = ""
