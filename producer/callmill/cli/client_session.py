"""Runs a command's work with a client on an event loop of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from callmill.cli.embedded_session import data_of_before
from callmill.config.settings import load_settings
from callmill.errors import BatchNotFoundError
from callmill.producer import AsyncBatch, AsyncClient

T = TypeVar("T")


def with_batches(work: Callable[[AsyncClient], Awaitable[T]]) -> T:
    """Run ``work`` and return its result; without a configured Redis, start the embedded server meanwhile."""
    with data_of_before(load_settings()):
        return with_client(work)


def with_client(work: Callable[[AsyncClient], Awaitable[T]]) -> T:
    """Run ``work`` and return its result; the client is closed afterwards."""

    async def session() -> T:
        async with AsyncClient() as client:
            return await work(client)

    return asyncio.run(session())


async def find_batch(client: AsyncClient, batch_id: str | None) -> AsyncBatch:
    """Return the batch with this id, or the newest one.

    Raises:
        BatchNotFoundError: There is no such batch, or none at all.
    """
    if batch_id is not None:
        return await client.batch(batch_id)
    newest = await client.batches(1)
    if not newest:
        raise BatchNotFoundError("there is no batch yet: submit one with `callmill run` or `callmill submit`")
    return await client.batch(newest[0].id)
