"""EventBundles: Celery's events about tasks, which Flower shows, go out together once a second.

Celery would send those of each turn of its loop, three or four times for each chunk, and one costs more than the rest
of what its thread does for a chunk.

Celery would also send them as soon as there are 24, in the thread that brings the last. On a cold shutdown that is the
handler of a signal, which may have interrupted this very thread while it sent an event with the dispatcher locked: it
would wait for itself for ever.
"""

from __future__ import annotations

import math
from typing import Any

from celery import bootsteps

_EVERY_S = 1.0


class EventBundlesStep(bootsteps.StartStopStep):  # type: ignore[misc] # celery ships no types
    """Sends what the dispatcher of a consumer has gathered, however much that is."""

    requires = ("celery.worker.consumer.events:Events",)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self._timer: Any = None

    def start(self, parent: Any) -> None:
        """Begin with a consumer that starts, the first or one after a reconnect."""
        if parent.hub is not None:
            parent.event_dispatcher.on_send_buffered = None
            parent.event_dispatcher.buffer_limit = math.inf
            self._timer = parent.hub.call_repeatedly(_EVERY_S, parent.event_dispatcher.flush)

    def stop(self, parent: Any) -> None:
        """Send the rest before the dispatcher is closed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            parent.event_dispatcher.flush()
