"""LaneSwitch: whether this process consumes a lane's queue.

A lane that cannot start calls now must not fill the process with its chunks: its queue is left to others, and other
lanes go on.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from celery import bootsteps

from callmill.config.celery import app, lane_queue

log = logging.getLogger(__name__)


class LaneSwitch:
    """The queues that should be consumed, and the consumer that is told. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._consumer: Any = None
        self._off: set[str] = set()

    def is_off(self, api: str) -> bool:
        """Say whether the lane's queue is left alone."""
        return api in self._off

    def set(self, api: str, *, on: bool) -> None:
        """Consume the lane's queue, or leave it alone; takes effect within milliseconds."""
        with self._lock:
            if on == (api not in self._off):
                return
            (self._off.discard if on else self._off.add)(api)
            if self._consumer is not None:
                self._consumer.call_soon(self._apply, self._consumer, api)

    def attach(self, consumer: Any) -> None:
        """Take note of a consumer that starts, the first or one after a reconnect."""
        with self._lock:
            self._consumer = consumer
        for queue in list(app.amqp.queues):
            if queue.startswith(lane_queue("")):
                self._apply(consumer, queue.removeprefix(lane_queue("")))

    def detach(self) -> None:
        """Take note that the consumer is gone."""
        with self._lock:
            self._consumer = None

    def _apply(self, consumer: Any, api: str) -> None:
        """Run on the consumer's thread: make it consume, or not, what is wanted by now."""
        queue = lane_queue(api)
        try:
            if api in self._off:
                consumer.cancel_task_queue(queue)
            elif not consumer.task_consumer.consuming_from(queue):
                consumer.add_task_queue(queue)
        except consumer.connection_errors as error:
            log.warning("lane not switched: %s", error, extra={"action": "switch_failed", "api": api})


switch = LaneSwitch()
"""The switch of this process; Celery makes one consumer a process."""


class LaneSwitchStep(bootsteps.StartStopStep):  # type: ignore[misc] # celery ships no types
    """Tells the switch which consumer is there."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, parent: Any) -> None:
        """Attach to a consumer that starts."""
        switch.attach(parent)

    def stop(self, parent: Any) -> None:  # noqa: ARG002 - Celery's signature
        """Detach from a consumer that stops."""
        switch.detach()
