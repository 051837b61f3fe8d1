"""The Celery app: how hints travel. Celery's names and settings stay behind this module.

Importing it needs neither Redis nor an environment; the settings are read when the app is first used.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from celery import Celery
from celery.app.amqp import AMQP
from celery.app.utils import Settings as CelerySettings

from callmill.config.broker_connection import LANE_PREFIX, BrokerConnection, sentinel_transport_options
from callmill.config.embedded_server import broker_url, redis_url
from callmill.config.redis_connections import (
    CLIENT_NAME,
    CONNECT_TIMEOUT_S,
    HEALTH_CHECK_INTERVAL_S,
    SOCKET_TIMEOUT_S,
    ssl_options,
)
from callmill.config.redis_url import SentinelUrl, is_sentinel
from callmill.config.settings import Settings, load_settings
from callmill.errors import ServerNotFoundError

CALLS_QUEUE = "calls"
"""Queue of the plain task, one call a message."""

KEY_PREFIX = "callmill:"
"""What every key of the broker and of task results begins with."""


def lane_queue(line: str) -> str:
    """Return the name of the queue that carries the hints for the chunks of one line."""
    return f"{LANE_PREFIX}{line}"


def lane_queue_key(line: str) -> str:
    """Return the key under which the broker keeps that queue, as a Redis list."""
    return KEY_PREFIX + lane_queue(line)


class _OwnSettings(CelerySettings):  # type: ignore[misc] # celery ships no types
    """Celery's settings, but blind to CELERY_BROKER_URL and its kin: those speak to another app in the same process."""

    @property
    def broker_url(self) -> str:
        # Where no server was there, this says so: only who needs the URL may fail for it. Producers bring their own.
        return str(self["broker_url"] or _verified(broker_url(load_settings())))

    @property
    def broker_read_url(self) -> str:
        return self.broker_url

    @property
    def broker_write_url(self) -> str:
        return self.broker_url

    @property
    def result_backend(self) -> str:
        return str(self["result_backend"] or _verified(redis_url(load_settings())))


class _OwnAmqp(AMQP):  # type: ignore[misc] # celery ships no types
    """Sends messages over whatever connection it is given, also where the app itself has no broker."""

    Connection = BrokerConnection

    @cached_property
    def _event_dispatcher(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride] - cached there by kombu
        # Disabled: it never connects. Celery would make it with the app's broker, which a producer need not have.
        return self.app.events.Dispatcher(self.app.connection_for_write("redis://"), enabled=False)


class _App(Celery):  # type: ignore[misc] # celery ships no types
    """A Celery app that reads Callmill's settings at its first use; when that fails, the next use tries again."""

    amqp_cls = _OwnAmqp

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Celery has no seam for the class of its settings. Plain assignment would set a Celery setting.
        object.__setattr__(self.conf, "__class__", _OwnSettings)

    def prepare_config(self, c: object) -> Any:  # noqa: ARG002 - what another app would be configured by
        return super().prepare_config(celery_configuration(load_settings()))


def celery_configuration(settings: Settings) -> dict[str, Any]:
    """Return Celery's configuration; its URLs are None where no Redis is configured and no embedded server runs."""
    broker, results = _url(broker_url, settings), _url(redis_url, settings)
    return {
        "broker_url": broker,
        "worker_concurrency": settings.chunks_per_process,
        **_BROKER,
        **_sentinels_for_flower(broker),
        **_RESULTS,
        **_result_backend(results),
        **_TASKS,
        **_WORKER,
    }


def _sentinels_for_flower(broker: str | None) -> dict[str, Any]:
    """Say in Celery's settings, too, what ``BrokerConnection`` reads from the URL: Flower looks for it there."""
    if broker is None or not is_sentinel(broker):
        return {}
    address = SentinelUrl.parse(broker)
    known: dict[str, Any] = {
        "broker_transport_options": _BROKER["broker_transport_options"] | sentinel_transport_options(address)
    }
    return known | ({"broker_use_ssl": ssl_options(address)} if address.tls else {})


def _result_backend(url: str | None) -> dict[str, Any]:
    if url is None or not is_sentinel(url):
        return {"result_backend": url}
    address = SentinelUrl.parse(url)
    return {
        "result_backend": address.kombu_url(),
        "result_backend_transport_options": _RESULTS["result_backend_transport_options"]
        | sentinel_transport_options(address),
        **({"redis_backend_use_ssl": ssl_options(address)} if address.tls else {}),
    }


def _url(find: Callable[[Settings], str], settings: Settings) -> str | None:
    try:
        return _verified(find(settings))
    except ServerNotFoundError:
        return None


def _verified(url: str) -> str:
    """Say that certificates are verified, where a URL leaves it open: to redis-py that is so, and Celery insists."""
    if not url.startswith("rediss:") or "ssl_cert_reqs=" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}ssl_cert_reqs=required"


_BROKER: dict[str, Any] = {
    "broker_transport_options": {
        # A backstop only: chunks have leases of their own, and these are short.
        "visibility_timeout": 3600,
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": 15,
        "health_check_interval": 5,
        "socket_timeout": SOCKET_TIMEOUT_S,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_keepalive": True,
        "global_keyprefix": KEY_PREFIX,
        "client_name": CLIENT_NAME,
        # How long a pop waits, and so how soon a lane that is switched on is heard. Kombu's word for BRPOP's time-out.
        "polling_interval": 0.25,
        # No retry_on_timeout: it forbids kombu's batch publishing, and a replayed LPUSH is a message twice.
    },
    # Without it a failover to a replica ends the worker: "Unrecoverable error: ReadOnlyError".
    "broker_channel_error_retry": True,
    "broker_connection_retry": True,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "broker_connection_timeout": CONNECT_TIMEOUT_S,
    "broker_pool_limit": 64,
    "broker_pool_acquire_timeout": 10,
}

_RESULTS: dict[str, Any] = {
    "result_backend_transport_options": {"global_keyprefix": KEY_PREFIX},
    "result_expires": 24 * 3600,
    "result_backend_always_retry": True,
    "redis_socket_timeout": SOCKET_TIMEOUT_S,
    "redis_socket_connect_timeout": CONNECT_TIMEOUT_S,
    "redis_socket_keepalive": True,
    "redis_backend_health_check_interval": HEALTH_CHECK_INTERVAL_S,
    "redis_client_name": CLIENT_NAME,
}

_TASKS = {
    "task_default_queue": CALLS_QUEUE,
    "task_acks_late": True,
    "task_ignore_result": True,
    "task_serializer": "json",
    "result_serializer": "json",
    "accept_content": ["json"],
    "enable_utc": True,
    "timezone": "UTC",
}

_WORKER = {
    # For Flower, which would otherwise switch them on seconds late and miss a small batch altogether.
    "worker_send_task_events": True,
    "worker_pool": "callmill.workers.pool:TaskPool",
    "worker_consumer": "callmill.workers.consumer:CallmillConsumer",
    "worker_prefetch_multiplier": 1,
    "worker_disable_rate_limits": True,
    # Waiting tasks of other people's chains sit in worker memory: bounded.
    "worker_eta_task_limit": 1000,
    # Calls go on through a broken broker connection; their outcomes need the ledger only.
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "worker_hijack_root_logger": False,
    "worker_redirect_stdouts": False,
}

app = _App("callmill", set_as_current=False)
