"""LaneSwitch: which lines' queues this process consumes.

A line that cannot start calls now must not fill the process with its chunks: its queue is left to others, and other
lines go on. Lines come and go while the process runs; each of them brings a thread, so that it need not wait for one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import Any

from celery import bootsteps
from kombu.entity import Queue

from callmill.config.celery import app, lane_queue

log = logging.getLogger(__name__)

MOST_THREADS_FOR_LINES = 128
"""Threads that lines bring to one process at most; lines beyond take turns."""


class LaneSwitch:
    """The queues that should be consumed, and the consumer that is told. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._consumer: Any = None
        self._off: set[str] = set()
        self._lines: set[str] = set()
        self._threads_for_lines = 0

    def is_off(self, line: str) -> bool:
        """Say whether the line's queue is left alone."""
        return line in self._off

    def set(self, line: str, *, on: bool) -> None:
        """Consume the line's queue, or leave it alone; takes effect within milliseconds."""
        with self._lock:
            if on == (line not in self._off):
                return
            (self._off.discard if on else self._off.add)(line)
            self._tell(line)

    def serve(self, lines: Iterable[str]) -> None:
        """Consume the queues of these lines, but for those that are switched off, and of no others."""
        with self._lock:
            former, self._lines = self._lines, set(lines)
            self._off &= self._lines
            for line in former ^ self._lines:
                self._tell(line)

    def attach(self, consumer: Any) -> None:
        """Take note of a consumer that starts, the first or one after a reconnect."""
        with self._lock:
            self._consumer = consumer
            for queue in list(app.amqp.queues):
                if queue.startswith(lane_queue("")) and "@" not in queue:
                    self._lines.add(queue.removeprefix(lane_queue("")))
            lines = list(self._lines)
        for line in lines:
            self._apply(consumer, line)

    def detach(self) -> None:
        """Take note that the consumer is gone."""
        with self._lock:
            self._consumer = None

    def _tell(self, line: str) -> None:
        if self._consumer is not None:
            self._consumer.call_soon(self._apply, self._consumer, line)

    def _apply(self, consumer: Any, line: str) -> None:
        """Run on the consumer's thread: make it consume, or not, what is wanted by now."""
        queue = lane_queue(line)
        try:
            self._resize(consumer)
            if line in self._off or line not in self._lines:
                consumer.cancel_task_queue(queue)
            elif not consumer.task_consumer.consuming_from(queue):
                if "@" in line:
                    # Not declared: hints are sent to the queue itself, and a binding would outlive the line.
                    app.amqp.queues.add(Queue(queue, no_declare=True))  # type: ignore[no-untyped-call]
                consumer.add_task_queue(queue)
            if line not in self._lines:
                app.amqp.queues.pop(queue, None)
        except consumer.connection_errors as error:
            log.warning("line not switched: %s", error, extra={"action": "switch_failed", "line": line})

    def _resize(self, consumer: Any) -> None:
        """Have as many threads, and take as many messages, as the lines of now bring."""
        wanted = min(sum("@" in line for line in self._lines), MOST_THREADS_FOR_LINES)
        more, self._threads_for_lines = wanted - self._threads_for_lines, wanted
        if more:
            consumer.pool.limit += more
            consumer._update_prefetch_count(more)  # noqa: SLF001 - Celery's own pool_grow does the same


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
