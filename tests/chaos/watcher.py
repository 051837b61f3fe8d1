"""Watches Redis from outside while a storm lasts, and takes stock at its end."""

from __future__ import annotations

import struct
import threading
import time
from contextlib import suppress
from typing import Any, Self

import msgspec
import redis
from arena import Arena
from history import Final, Progress, Read, Snapshot
from local_nodes import until
from reader import seen

from callmill.ledger.keys import BatchKeys
from callmill.producer import Batch, Client

_EVERY_S = 0.02
_SNAPSHOT_EVERY_S = 2.0
_GONE_WITHIN_S = 20.0
_UNACKED = (b"callmill:unacked", b"callmill:unacked_index")


class Watcher:
    """Samples every batch's counters, and now and then its bitmaps beside them, straight from the server."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher")
        self._last: dict[str, tuple[Any, ...]] = {}
        self.ended: set[str] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def told(self) -> str:
        """Say how far the batches are."""
        return ", ".join(f"{batch} {done}/{total}" for batch, (done, total, *_) in self._last.items())

    def _run(self) -> None:
        snapshot_s = 0.0
        while not self._stopping.wait(_EVERY_S):
            server = self._arena.redis
            try:
                with redis.Redis.from_url(server.url, socket_timeout=2) as connection:
                    while server is self._arena.redis and not self._stopping.wait(_EVERY_S):
                        self._sample(connection)
                        if time.monotonic() > snapshot_s:
                            snapshot_s = time.monotonic() + _SNAPSHOT_EVERY_S
                            self._snapshot(connection)
            except redis.RedisError:
                continue

    def _sample(self, connection: redis.Redis) -> None:
        batches = list(self._arena.batches)
        pipeline = connection.pipeline(transaction=False)
        for batch in batches:
            pipeline.hmget(BatchKeys(batch).meta, "succeeded", "failed", "total", "phase", "ended_ms")
        for batch, fields in zip(batches, pipeline.execute(), strict=True):
            succeeded, failed, total, phase, ended = fields
            if total is None:
                continue
            now = (int(succeeded or 0) + int(failed or 0), int(total), phase == b"sealed", ended is not None)
            if self._last.get(batch) != now:
                self._last[batch] = now
                self._arena.log.write(Progress(batch, time.time(), *now))
            (self.ended.add if now[3] else self.ended.discard)(batch)

    def _snapshot(self, connection: redis.Redis) -> None:
        for batch in set(self._arena.batches) - self.ended:
            keys = BatchKeys(batch)
            pipeline = connection.pipeline(transaction=True)
            pipeline.hmget(keys.meta, "succeeded", "failed", "total")
            for key in (keys.chunks, keys.state, keys.done):
                pipeline.hgetall(key)
            (succeeded, failed, total), chunks, state, done = pipeline.execute()
            if total is None:
                continue
            stood = {}
            for number, payload in chunks.items():
                fields = state[number].split(b"|") if number in state else None
                counted = int(fields[4]) if fields else 0
                bits = int.from_bytes(done.get(number, b"")).bit_count()
                if fields and fields[1] == b"D":
                    bits = counted
                stood[int(number)] = (struct.unpack_from(">BI", payload)[1], counted, bits)
            recorded = int(succeeded or 0) + int(failed or 0)
            self._arena.log.write(Snapshot(batch, time.time(), recorded, int(total), stood))


def take_stock(arena: Arena) -> None:
    """Write down how every batch ended, delete it, and what of it is still in Redis then."""
    with Client(arena.url) as client, redis.Redis.from_url(arena.redis.url) as connection:
        finals = [_final(batch_id, jobs, client, connection) for batch_id, jobs in arena.batches.items()]
        for batch_id in arena.batches:
            client.batch(batch_id).delete()
        left = {batch_id: _left_over(connection, batch_id) for batch_id in arena.batches}
        if any(left.values()):
            with suppress(AssertionError):
                until(lambda: not any(_left_over(connection, one) for one in arena.batches), _GONE_WITHIN_S)
            left = {batch_id: _left_over(connection, batch_id) for batch_id in arena.batches}
    for final in finals:
        arena.log.write(msgspec.structs.replace(final, left_over=left[final.batch]))


def _final(batch_id: str, submitted: int, client: Client, connection: redis.Redis) -> Final:
    keys = BatchKeys(batch_id)
    meta = {name.decode(): value.decode() for name, value in connection.hgetall(keys.meta).items()}
    outcomes = _outcomes(client.batch(batch_id)) if "ended_ms" in meta else []
    return Final(
        batch=batch_id,
        submitted=submitted,
        total=int(meta.get("total", 0)),
        succeeded=int(meta.get("succeeded", 0)),
        failed=int(meta.get("failed", 0)),
        leased=int(meta.get("leased", 0)),
        ended="ended_ms" in meta,
        unfinished_chunks=connection.hlen(keys.chunks),
        outcomes=outcomes,
        left_over=[],
    )


def _outcomes(batch: Batch) -> list[Read]:
    return [seen(batch.id, outcome) for outcome in batch.outcomes()]


def _left_over(connection: redis.Redis, batch_id: str) -> list[str]:
    """Return the keys that are named after a batch or speak of it.

    Not those in which Celery notes the messages that a killed worker had: they come again when its visibility timeout
    is over, and lead to nothing then.
    """
    word = batch_id.encode()

    def speaks(key: bytes) -> bool:
        return key not in _UNACKED and (word in key or any(word in part for part in _parts(connection, key)))

    return [key.decode() for key in connection.scan_iter(count=1000) if speaks(key)]


def _parts(connection: redis.Redis, key: bytes) -> list[bytes]:
    match connection.type(key):
        case b"list":
            return connection.lrange(key, 0, -1)
        case b"zset":
            return connection.zrange(key, 0, -1)
        case b"set":
            return list(connection.smembers(key))
        case b"hash":
            return [part for pair in connection.hgetall(key).items() for part in pair]
        case _:
            return []


def logged_bugs(logs: dict[str, str]) -> list[str]:
    """Return the lines of workers' logs that tell of a bug, whatever Redis and the API did."""
    signs = ("a call met a bug", "background work failed", "a runner died", "worker died", "Unrecoverable error")
    return [
        f"{name}: {line}" for name, log in logs.items() for line in log.splitlines() if any(s in line for s in signs)
    ]


__all__ = ["Watcher", "logged_bugs", "take_stock"]
