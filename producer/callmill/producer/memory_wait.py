"""What a producer does while Redis has no room: it waits, and says so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from callmill.errors import RedisFullError, RedisUnavailableError
from callmill.ledger.memory import MemoryGauge, Role

log = logging.getLogger(__name__)

T = TypeVar("T")

_POLL_S = 0.25


class MemoryWait:
    """A wait for memory of Redis.

    Args:
        gauge: How much there is.
        stored_bytes: Says how much the batch has in Redis already; left out: nothing.
    """

    def __init__(self, gauge: MemoryGauge, stored_bytes: Callable[[], Awaitable[int]] | None = None) -> None:
        self._gauge = gauge
        self._stored_bytes = stored_bytes

    async def over(self, unless: Callable[[], Awaitable[bool]] | None = None) -> None:
        """Wait until there is room, or until ``unless`` says that none is needed any more."""
        told = False
        while reason := await self._reason():
            if not told:
                log.warning("submitting waits: %s", reason, extra={"action": "submit_waits"})
            told = True
            if unless is not None and await unless():
                return
            await asyncio.sleep(_POLL_S)
        if told:
            log.warning("submitting goes on: Redis has room again", extra={"action": "submit_goes_on"})

    async def _reason(self) -> str:
        try:
            stored_bytes = 0 if self._stored_bytes is None else await self._stored_bytes()
            return await self._gauge.why_wait(Role.PRODUCER, stored_bytes)
        except RedisUnavailableError:  # what writes next meets it, and knows how long to try
            return ""


async def repeated_while_full(step: Callable[[], Awaitable[T]]) -> T:
    """Run a step, again and again while Redis refuses it because its memory is full: it was not done then."""
    told = False
    while True:
        try:
            return await step()
        except RedisFullError as error:
            if not told:
                log.warning("submitting waits: %s", error, extra={"action": "submit_waits"})
            told = True
            await asyncio.sleep(_POLL_S)
