"""Overrides: follows what people change about an API's limits while it runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from redis.asyncio import Redis

from callmill.config.limit_spec import LimitSpec
from callmill.errors import RedisUnavailableError, UnknownFormatError
from callmill.limits.control import load_override

LOOK_EVERY_S = 1.0
"""Messages tell at once; looking heals those that were lost."""

log = logging.getLogger(__name__)


class Overrides:
    """Tells of every change: ``on_change`` of limits, ``on_news`` of whatever else, such as a pause that was ended.

    ``on_change`` gets the limits that hold instead of the profile's, or None for those.
    """

    def __init__(
        self,
        redis: Redis,
        api: str,
        *,
        on_change: Callable[[tuple[LimitSpec, ...] | None], None],
        on_news: Callable[[], None],
    ) -> None:
        self._redis = redis
        self._api = api
        self._on_change = on_change
        self._on_news = on_news
        self._limits: tuple[LimitSpec, ...] | None = None
        self._wake = asyncio.Event()
        self.generation = 0

    def look(self) -> None:
        """Something was changed: find out what."""
        self._wake.set()

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._wake.wait()
            self._wake.clear()
            await self.load()

    async def load(self) -> None:
        """Take over what is in force; without Redis, what was in force goes on."""
        try:
            generation, limits = await load_override(self._redis, self._api)
        except RedisUnavailableError:
            return
        except UnknownFormatError as error:
            log.warning(
                "limits set at run time are left alone: %s",
                error,
                extra={"action": "limits_unreadable", "api": self._api},
            )
            return
        if generation == self.generation:
            return
        self.generation = generation
        if limits != self._limits:
            self._limits = limits
            log.info(
                "limits are now %s",
                "those of the profile" if limits is None else ", ".join(map(str, limits)),
                extra={"action": "limits_changed", "api": self._api},
            )
            self._on_change(limits)
        self._on_news()
