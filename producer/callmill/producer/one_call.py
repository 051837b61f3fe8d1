"""A call that its caller waits for: a batch of one job that is removed however the wait ends."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence

from callmill.config.redaction import without_secrets
from callmill.errors import BatchNotFoundError, BatchStateError, CallmillError, RedisUnavailableError, WaitTimeoutError
from callmill.jobs import Job, Outcome
from callmill.ledger.keys import ChunkRef
from callmill.producer.async_batch import AsyncBatch
from callmill.producer.connection import Connection

log = logging.getLogger(__name__)

_CLEAN_UP_S = 3.0
"""How long a call that has no outcome is looked into and withdrawn, at most: Redis may be what did not answer."""

_NOT_SUBMITTED = "it had not been submitted yet"
_WITHDRAWN = "the call was withdrawn"
_MAY_RUN = "the call could not be withdrawn and may still be made"


async def one_call(
    job: Job,
    submit: Callable[[str], Awaitable[AsyncBatch]],
    connection: Callable[[], Connection],
    *,
    timeout_s: float | None,
) -> Outcome:
    """Submit a job, wait for its outcome, and remove its batch; see ``AsyncClient.call``.

    ``submit`` submits it as a batch of the given id.
    """
    batch_id, limit = secrets.token_hex(12), asyncio.timeout(timeout_s)
    try:
        async with limit:
            outcome = await _first_outcome(await submit(batch_id))
    except BaseException as error:
        timed_out = isinstance(error, TimeoutError) and limit.expired()
        became = await _give_up(connection(), batch_id, job.api, explain=timed_out)
        if timed_out:
            what = without_secrets(f"{job.method} {job.url} of {job.api}")
            raise WaitTimeoutError(f"{what} has no outcome after {timeout_s} s: {became}") from error
        raise
    await _forget(connection(), batch_id)
    return outcome


async def _first_outcome(batch: AsyncBatch) -> Outcome:
    async for outcome in batch.outcomes():
        return outcome
    raise BatchStateError(f"the call ended without an outcome: its batch {batch.id} was cancelled")


async def _give_up(connection: Connection, batch_id: str, api: str, *, explain: bool) -> str:
    """Withdraw a call; return what it waited for, where that is to be explained, and what became of it."""
    why, became = "Redis does not answer", _MAY_RUN
    try:
        async with asyncio.timeout(_CLEAN_UP_S):
            if explain:
                why = await _why_waiting(connection, batch_id)
            if await _take_back(connection, batch_id, api):
                became = _WITHDRAWN
    except TimeoutError as error:
        _say_left(batch_id, error)
    return why if why == _NOT_SUBMITTED and became == _WITHDRAWN else f"{why}; {became}"


async def _why_waiting(connection: Connection, batch_id: str) -> str:
    try:
        progress = await AsyncBatch(lambda: connection, batch_id, "").progress()
    except BatchNotFoundError:
        return _NOT_SUBMITTED
    except CallmillError as error:
        return str(error)
    return progress.limited_by if progress.total else _NOT_SUBMITTED


async def _take_back(connection: Connection, batch_id: str, api: str) -> bool:
    """Remove a call that has no outcome, and its hint, so that no worker meets either; return whether it is gone."""
    try:
        line = (await connection.batches.record(batch_id)).line(api)
    except BatchNotFoundError:
        return True
    except RedisUnavailableError as error:
        _say_left(batch_id, error)
        return False
    chunk = ChunkRef(batch_id, 0, str(line))
    if not await _forget(connection, batch_id, [chunk]):
        return False
    try:
        await asyncio.to_thread(connection.hints.withdraw, chunk)
    except RedisUnavailableError as error:  # it leads to nothing
        log.debug("a hint could not be removed: %s", error, extra={"action": "hint_left", "batch": batch_id})
    return True


async def _forget(connection: Connection, batch_id: str, queued: Sequence[ChunkRef] = ()) -> bool:
    """Remove a call; return whether it is gone."""
    try:
        await connection.batches.delete(batch_id, queued)
    except RedisUnavailableError as error:
        _say_left(batch_id, error)
        return False
    return True


def _say_left(batch_id: str, error: RedisUnavailableError | TimeoutError) -> None:
    log.warning(
        "a call may stay in Redis until its retention ends: %s",
        str(error) or "Redis does not answer",
        extra={"action": "call_left", "batch": batch_id},
    )
