"""What a Celery worker needs before it starts: the queues of its lanes, and a clear word when something is wrong."""

from __future__ import annotations

import warnings
from typing import Any

from celery.signals import after_setup_logger, after_setup_task_logger, celeryd_init
from kombu.entity import Queue

from callmill.config.alert_policy import resolve_webhooks
from callmill.config.celery import CALLS_QUEUE, app, lane_queue
from callmill.config.credentials import resolve_credentials
from callmill.config.embedded_server import broker_url, redis_url
from callmill.config.log_format import adopt_log
from callmill.config.profiles import find_alerts, find_profiles
from callmill.config.redis_safety import refuse_unsafe
from callmill.config.settings import load_settings
from callmill.errors import CallmillError
from callmill.workers.event_bundles import EventBundlesStep
from callmill.workers.lane_switch import LaneSwitchStep
from callmill.workers.served_lines import ServedLines

SUPERUSER = ".*superuser privileges"
"""What Celery warns of for the sake of pickle, which we do not accept."""

for step in (LaneSwitchStep, EventBundlesStep):
    app.steps["consumer"].add(step)  # pyright: ignore[reportOptionalSubscript] - celery fills it


@celeryd_init.connect  # type: ignore[untyped-decorator] # celery ships no types
def prepare(conf: Any, sender: Any = None, **_: Any) -> None:
    """Set up the queues of the lanes that this worker serves."""
    if conf is not app.conf:
        return  # somebody else's app, in whose worker our plain task runs
    try:
        settings = load_settings()
        broker_url(settings)
        refuse_unsafe(redis_url(settings), allow_unsafe=settings.allow_unsafe_redis)
        profiles = find_profiles(settings) or {}
        for profile in profiles.values():
            resolve_credentials(profile)
        if (alerts := find_alerts(settings)) is not None:
            resolve_webhooks(alerts)
    except CallmillError as error:
        raise SystemExit(f"callmill: {error}") from error

    def adopt(logger: Any, **_: Any) -> None:
        adopt_log(logger, str(sender), level=settings.log_level, style=settings.log_format)

    warnings.filterwarnings("ignore", message=SUPERUSER)
    after_setup_logger.connect(adopt, weak=False)
    after_setup_task_logger.connect(adopt, weak=False)
    # The switch adds the queues of other lines. A worker that executes only one batch takes no plain tasks either.
    lines = ServedLines(profiles, only_batch=settings.only_batch or "").own
    names = [*map(lane_queue, lines)] if settings.only_batch else [CALLS_QUEUE, *map(lane_queue, profiles)]
    conf.task_queues = [Queue(name, no_declare=name != CALLS_QUEUE) for name in names]  # type: ignore[no-untyped-call] # kombu is not annotated
