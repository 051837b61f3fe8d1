"""AnswerGathering: lets the client's thread hand over answers together, where there are many.

The client's thread needs Python's lock for each answer that it hands over. While the event loop works through what came
before, each answer would make both threads wait for each other, and each wait costs a good part of a call's CPU time.
So after answers the loop's thread stops for a moment: what has come meanwhile is handed over at once.
"""

from __future__ import annotations

import asyncio
import time

PAUSE_S = 0.0002
MANY_PER_S = 4000
"""With fewer answers, more would be spent on waking up again than is saved."""

_COUNTED = 16


class AnswerGathering:
    """Stops the event loop's thread for a moment after answers, if they come fast. Belongs to one event loop."""

    def __init__(self) -> None:
        self._many = self._is_due = False
        self._count = 0
        self._since_s = 0.0

    def answered(self) -> None:
        """Take note that a call ended."""
        self._count += 1
        if self._count == _COUNTED:
            now_s = time.monotonic()
            self._many = (now_s - self._since_s) * MANY_PER_S < _COUNTED
            self._count, self._since_s = 0, now_s
        if self._many and not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._pause)

    def _pause(self) -> None:
        self._is_due = False
        time.sleep(PAUSE_S)
