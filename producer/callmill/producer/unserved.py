"""UnservedWarning: what the log says while someone waits for a batch that no worker serves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self, TypeVar

from callmill.config.cancelling import end_tasks
from callmill.errors import CallmillError
from callmill.overview.progress import why_unserved
from callmill.producer.connection import Connection

log = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_EVERY_S = 3.0


class UnservedWarning:
    """While entered, warns when no worker serves an API of a batch, and says when that is over."""

    def __init__(self, connection: Callable[[], Connection], batch_id: str) -> None:
        self._connection = connection
        self._batch_id = batch_id

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await end_tasks([self._task])

    async def _watch(self) -> None:
        told = ""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                why = await self._why()
            except CallmillError:  # whoever waits for the batch gets it as well
                continue
            batch = self._batch_id
            if why and why != told:
                log.warning("batch %s waits: %s", batch, why, extra={"action": "batch_unserved", "batch": batch})
            elif told and not why:
                log.warning(
                    "batch %s goes on: its APIs are served now", batch, extra={"action": "batch_served", "batch": batch}
                )
            told = why

    async def _why(self) -> str:
        connection = self._connection()
        return why_unserved(await connection.batches.record(self._batch_id), await connection.fleet.workers())


async def warned_of(items: AsyncIterator[T], connection: Callable[[], Connection], batch_id: str) -> AsyncIterator[T]:
    """Yield the items of a batch; while none come because no worker serves its APIs, the log says so."""
    async with UnservedWarning(connection, batch_id):
        async for item in items:
            yield item
