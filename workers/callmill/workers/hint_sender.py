"""HintSender: sends a worker's hints, one publish at a time; what could not be sent is sent again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Protocol

from callmill.errors import RedisUnavailableError
from callmill.ledger import ChunkRef

log = logging.getLogger(__name__)

_AGAIN_S = 1.0
_LAST_WORD_S = 5.0


class Publisher(Protocol):
    """Publishes hints and blocks meanwhile."""

    def publish(self, refs: list[ChunkRef], *, first: bool = False) -> None:
        """Publish a hint for each chunk, where asked before those that are out."""
        ...


class HintSender:
    """Sends hints from one event loop.

    While the broker is away they gather here, each chunk once, and no thread waits for it: neither the hints that come
    when it is back nor the end of the process are held up by those that came before.
    """

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._waiting: dict[ChunkRef, bool] = {}
        self._wanted, self._idle = asyncio.Event(), asyncio.Event()
        self._idle.set()

    def send(self, refs: Iterable[ChunkRef], *, first: bool = False) -> None:
        """Send a hint for each chunk soon; ``first``: before those of others, also where one waits already."""
        for ref in refs:
            self._waiting[ref] = first or self._waiting.get(ref, False)
            self._idle.clear()
            self._wanted.set()

    async def run(self) -> None:
        """Send what comes, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            waiting, self._waiting = self._waiting, {}
            try:
                for first in (False, True):
                    refs = [ref for ref, goes_first in waiting.items() if goes_first is first]
                    await asyncio.to_thread(self._publisher.publish, refs, first=first)
            except RedisUnavailableError as error:
                log.warning("%d hints wait: %s", len(waiting), error, extra={"action": "hints_wait"})
                self._waiting = waiting | self._waiting
                await asyncio.sleep(_AGAIN_S)
                self._wanted.set()
            if not self._waiting:
                self._idle.set()

    async def settle(self) -> None:
        """Wait until everything is sent, or for some seconds; what is left is for the reconciler of another worker."""
        try:
            async with asyncio.timeout(_LAST_WORD_S):
                await self._idle.wait()
        except TimeoutError:
            log.warning("%d hints not sent", len(self._waiting), extra={"action": "hints_lost"})
