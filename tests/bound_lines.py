"""The lines in which the chunks of a batch wait, as the ledger has it."""

from __future__ import annotations

from redis import Redis

from callmill.ledger.keys import BatchKeys
from callmill.ledger.records import BatchRecord


def line_of(redis: Redis, batch_id: str, api: str = "api") -> str:
    """Return the text of the line of a batch's chunks for an API."""
    fields = {_bytes(name): _bytes(value) for name, value in redis.hgetall(BatchKeys(batch_id).meta).items()}
    return str(BatchRecord.read(batch_id, fields).line(api))


def _bytes(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else value
