"""Overrides: follows what people change about an API's limits while it runs, and what its refusals teach."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from msgspec.structs import replace
from redis.asyncio import Redis

from callmill.config.beat import until_beat_s
from callmill.errors import RedisUnavailableError, UnknownFormatError
from callmill.limits.control import InForce, load_in_force

LOOK_EVERY_S = 1.0
"""Messages tell at once; looking heals those that were lost."""

_AT_REST_EVERY_S = 5.0
"""While no call waits and none came lately; the first that comes makes it look."""

log = logging.getLogger(__name__)


class Overrides:
    """Tells of every change: ``on_change`` of limits, ``on_news`` of whatever else, such as a pause that was ended.

    ``waiting`` says how many calls wait for their start.
    """

    def __init__(
        self,
        redis: Redis,
        api: str,
        *,
        on_change: Callable[[InForce], None],
        on_news: Callable[[], None],
        waiting: Callable[[], int],
    ) -> None:
        self._redis = redis
        self._api = api
        self._on_change = on_change
        self._on_news = on_news
        self._waiting = waiting
        self._in_force = InForce()
        self._wake = asyncio.Event()
        self._used, self._rests = True, False

    @property
    def generation(self) -> int:
        """The change by people that is in force here; 0: none was made."""
        return self._in_force.generation

    def look(self) -> None:
        """Something was changed: find out what."""
        self._wake.set()

    def used(self) -> None:
        """A call asks for its start."""
        self._used = True
        if self._rests:
            self._wake.set()

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            self._rests, self._used = not self._used and not self._waiting(), False
            with suppress(TimeoutError):
                async with asyncio.timeout(until_beat_s(_AT_REST_EVERY_S) if self._rests else LOOK_EVERY_S):
                    await self._wake.wait()
            self._wake.clear()
            await self.load()

    async def load(self) -> None:
        """Take over what is in force; without Redis, what was in force goes on."""
        try:
            found = await load_in_force(self._redis, self._api)
        except RedisUnavailableError:
            return
        except UnknownFormatError as error:
            log.warning(
                "limits set at run time are left alone: %s",
                error,
                extra={"action": "limits_unreadable", "api": self._api},
            )
            return
        before, self._in_force = self._in_force, found
        if found.limits != before.limits:
            log.info(
                "limits are now %s",
                "those of the profile" if found.limits is None else ", ".join(map(str, found.limits)),
                extra={"action": "limits_changed", "api": self._api},
            )
        if replace(found, generation=0) != replace(before, generation=0):
            self._on_change(found)
        if found.generation != before.generation:
            self._on_news()
