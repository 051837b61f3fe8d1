"""DroppedMessages: tells of messages that make no sense, in a line every few seconds at most.

Whoever may write to a queue or channel chooses what comes from it, and how much: neither may fill the log.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

_EVERY_S = 5.0
_LONGEST_NAME, _LONGEST_REASON = 100, 300

log = logging.getLogger(__name__)


class DroppedMessages:
    """Counts dropped messages and logs them. Safe to use from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._next_s = -1.0
        self._unsaid = 0

    def note(self, where: str, why: object) -> None:
        """Log that a message was dropped, unless a line was written a moment ago; the next line counts it.

        Args:
            where: The queue or channel that it came from.
            why: What is wrong with it.
        """
        with self._lock:
            now_s = self._clock()
            if 0 <= now_s < self._next_s:
                self._unsaid += 1
                return
            self._next_s, unsaid, self._unsaid = now_s + _EVERY_S, self._unsaid, 0
        log.warning(
            "a message on %s was dropped: %s%s",
            where[:_LONGEST_NAME],
            str(why)[:_LONGEST_REASON],
            f"; and {unsaid:,} more since the last such line" if unsaid else "",
            extra={"action": "message_dropped"},
        )


dropped_messages = DroppedMessages()
"""Of this process."""
