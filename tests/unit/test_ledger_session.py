"""How failures of Redis reach the ledger's callers."""

from __future__ import annotations

import asyncio

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ResponseError

from callmill.config.redis_connections import connect
from callmill.errors import RedisFullError
from callmill.ledger import LedgerSession
from callmill.ledger.session import refused


def test_cancellation_that_a_client_turns_into_an_error_stays_one():
    """A task cancelled in the midst of a command ends as cancelled, whatever the client makes of it."""

    async def cut_off() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise RedisConnectionError("connection lost") from None

    async def scenario() -> None:
        session = LedgerSession(connect("redis://127.0.0.1:1"))
        command = asyncio.create_task(session.answer(cut_off()))
        await asyncio.sleep(0)
        command.cancel()
        with pytest.raises(asyncio.CancelledError):
            await command

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), True),
        (ResponseError("Error running script: -OOM command not allowed when used memory > 'maxmemory'."), True),
        (ResponseError("MISCONF Redis is configured to save RDB snapshots"), False),
    ],
)
def test_full_memory_is_told_from_other_refusals(error, full):
    """A refusal for lack of memory is known, however old the server that words it."""
    assert isinstance(refused(error), RedisFullError) == full
