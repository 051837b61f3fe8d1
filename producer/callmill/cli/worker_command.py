"""``callmill worker``: one worker process, which is a Celery worker with our pool."""

from __future__ import annotations

import logging
import os
import re
import secrets
import sys

import click
from celery.signals import setup_logging, worker_ready, worker_shutting_down
from celery.utils.nodenames import host_format

from callmill.cli.worker_setup import checked_profiles
from callmill.config.embedded_server import redis_url
from callmill.config.log_format import set_up_log
from callmill.config.redis_safety import refuse_unsafe
from callmill.config.settings import load_settings
from callmill.config.short_texts import shortened
from callmill.errors import ConfigurationError, InternalError

log = logging.getLogger("callmill.worker")

_HEARTBEAT_EVERY_S = 5
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MOST_SHOWN = 80


@click.command("worker")
@click.option(
    "--name",
    help="Name in Flower and in its log, followed by @HOST: 1 to 64 letters, digits, _ . and -. "
    "By default callmill-PID, in a container callmill-RANDOM.",
)
def worker(name: str | None) -> None:
    """Run one worker process: it serves every API of the profiles until SIGTERM or Ctrl-C.

    Start one per core. It then finishes its calls in flight and gives back the rest.
    """
    if name is not None and not _NAME.fullmatch(name):
        shown = shortened(repr(name), _MOST_SHOWN)
        raise click.UsageError(
            f"--name {shown}: 1 to 64 letters, digits, '_', '.' and '-' make a worker's name; the host's name is added"
        )
    settings = load_settings()
    profiles = checked_profiles(settings)
    refuse_unsafe(redis_url(settings), allow_unsafe=settings.allow_unsafe_redis)
    node = host_format(f"{name or _default_name()}@%h")
    set_up_log(node, level=settings.log_level, style=settings.log_format)
    # A receiver, whatever it does, keeps Celery from setting up logging of its own.
    setup_logging.connect(_logging_is_set_up, weak=False)
    raise SystemExit(_run(node, ", ".join(sorted(profiles))))


def _default_name() -> str:
    # In containers every worker may be process 1, and they may share a host name as well.
    return f"callmill-{secrets.token_hex(3) if os.getpid() == 1 else os.getpid()}"


def _run(node: str, serves: str) -> int:
    from callmill.workers import app, process  # noqa: PLC0415 - seconds of imports, not before the settings are right
    from callmill.workers.pool import TaskPool  # noqa: PLC0415 - as above

    # Where Celery writes, past all logging, that it stops; our log says so.
    setattr(sys, "__stdout__", None)  # noqa: B010 - final for type checkers
    process.engine()  # Celery would wrap what is wrong here into a traceback
    celery_worker = app.Worker(
        hostname=node,
        quiet=True,
        # Flower needs both: events to show chunks, heartbeats to take a worker for alive.
        task_events=True,
        heartbeat_interval=_HEARTBEAT_EVERY_S,
        without_gossip=True,
        without_mingle=True,
    )
    if celery_worker.pool_cls is not TaskPool:
        raise InternalError(f"Celery took the pool {celery_worker.pool_cls!r}, not ours")

    def say_ready(**_: object) -> None:
        log.info("ready, serves %s", serves, extra={"action": "worker_ready", "apis": serves})

    def say_stopping(sig: object = None, how: object = None, **_: object) -> None:
        log.info("%s: stopping (%s)", sig, str(how).lower(), extra={"action": "worker_stopping", "signal": str(sig)})

    worker_ready.connect(say_ready, weak=False)
    worker_shutting_down.connect(say_stopping, weak=False)
    try:
        celery_worker.start()
    finally:
        process.stop()
    code = int(celery_worker.exitcode or 0)
    log.info("stopped", extra={"action": "worker_stopped"})
    return code


def _logging_is_set_up(**_: object) -> None:
    if not logging.getLogger().handlers:
        raise ConfigurationError("the worker's log has no handler")
