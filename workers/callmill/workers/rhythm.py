"""Rhythm: how often a worker looks at what may have changed: often while it works, seldom at rest, always together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from callmill.config.beat import AT_REST_S, until_beat_s


class Rhythm:
    """Belongs to one event loop; ``at_rest`` says whether the worker has nothing to do."""

    def __init__(self, at_rest: Callable[[], bool]) -> None:
        self._at_rest = at_rest

    def either_s(self, every_s: float, *, at_rest_s: float) -> float:
        """Return which of the two holds now."""
        return at_rest_s if self._at_rest() else every_s

    async def pause(self, every_s: float, *, at_rest_s: float = AT_REST_S) -> float:
        """Wait for the next beat, of those that come every ``every_s``, at rest every ``at_rest_s`` or seldomer.

        Returns what the wait should have been, in seconds.
        """
        wait_s = until_beat_s(self.either_s(every_s, at_rest_s=max(every_s, at_rest_s)))
        await asyncio.sleep(wait_s)
        return wait_s
