"""Records a batch in the middle of its life as plain Redis commands, and brings it back: what a version wrote.

Run as a program this prints the record of the present format, which belongs into ``tests/golden/ledger-FORMAT.json``.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from local_nodes import RedisProcess
from redis.asyncio import Redis

from callmill.config.redis_connections import connect
from callmill.jobs.formats import FORMAT
from callmill.jobs.line import Line
from callmill.jobs.wire import Chunk, WireJob, WireOutcome, encode_chunk
from callmill.ledger import Batches, Bundle, ChunkRef, Chunks, Claim, Finish, LedgerSession

FOLDER = Path(__file__).parent / "golden"
BATCH = "golden"
JOBS = 3
STATES = ("done", "failed", "leased", "dead", "waiting", "queued")
"""What becomes of the chunks, in their order."""

_OF_SECONDS = (":rate", ":history")
"""Keys whose fields follow the clock."""

Command = list[str]


def outcome(index: int, status: int = 200) -> WireOutcome:
    """Return an outcome of the batch."""
    code = None if status == 200 else f"http_{status}"
    return WireOutcome(index, None, status, b'{"n":1}', {}, code, code and "no", 1, 1_000, 20_000 + index)


def line() -> str:
    """Return the line of every chunk."""
    return str(Line("crm", format=FORMAT))


async def write(redis: Redis) -> None:
    """Submit the batch and take it as far as ``STATES`` says."""
    session = LedgerSession(redis)
    batches, chunks = Batches(session), Chunks(session, worker="w", lease_ms=1)
    await batches.create("golden batch", retention_ms=3_600_000, batch_id=BATCH, max_unread_bytes=2**20)
    jobs = [WireJob("POST", "/v1/things", body=b'{"x":1}', content_type="application/json")] * JOBS
    payloads = [(line(), encode_chunk(Chunk("crm", JOBS * n, jobs))) for n in range(len(STATES))]
    await batches.add(BATCH, 0, payloads, park=True)
    await batches.seal(BATCH)
    await batches.unpark(BATCH)
    refs = [ChunkRef(BATCH, number, line()) for number in range(len(STATES))]
    for ref, state in zip(refs, STATES, strict=True):
        if state == "queued":
            continue
        claim = await chunks.claim(ref)
        assert isinstance(claim, Claim)
        first = JOBS * ref.number
        if state == "done":
            await chunks.commit(claim, Bundle([(n, outcome(first + n)) for n in range(JOBS)], [20_000], 3), Finish())
        elif state == "failed":
            some = [(n, outcome(first + n, 404 if n == 1 else 200)) for n in range(JOBS)]
            await chunks.commit(claim, Bundle(some, [20_000], 3), Finish())
        elif state == "waiting":
            late = Finish(delay_ms=1, attempts={1: 2}, not_before_ms={1: 1})
            await chunks.commit(claim, Bundle([(0, outcome(first))], calls=2, retries=1), late)
        elif state == "dead":
            await chunks.note_alone(claim, 1)
            await asyncio.sleep(0.003)
            again = await chunks.claim(ref)
            assert isinstance(again, Claim)
        else:
            await chunks.commit(claim, Bundle([(2, outcome(first + 2))], calls=1))


async def record(redis: Redis) -> list[Command]:
    """Return commands that write everything that is in Redis, in latin-1."""
    commands: list[list[bytes]] = []
    for key in sorted(await redis.keys("*")):
        kind: bytes = await redis.type(key)
        if kind == b"string":
            commands.append([b"SET", key, await redis.get(key)])
        elif kind == b"hash":
            fields = await redis.hgetall(key)
            commands.append([b"HSET", key, *(part for item in sorted(fields.items()) for part in item)])
        elif kind == b"set":
            commands.append([b"SADD", key, *sorted(await redis.smembers(key))])
        elif kind == b"zset":
            members = await redis.zrange(key, 0, -1, withscores=True)
            commands.append([b"ZADD", key, *(part for name, at in members for part in (b"%.0f" % at, name))])
        else:
            assert kind == b"stream", kind
            for entry_id, fields in await redis.xrange(key):
                commands.append([b"XADD", key, entry_id, *(part for item in fields.items() for part in item)])
    return [[part.decode("latin-1") for part in command] for command in commands]


async def bring_back(redis: Redis, commands: list[Command]) -> None:
    """Write a record into an empty Redis."""
    for command in commands:
        await redis.execute_command(*(part.encode("latin-1") for part in command))


def shape(commands: list[Command]) -> list[Command]:
    """Return what of a record is the same every time: no times, ids of a stream, fences or packed bytes."""
    return [
        command[:2] if command[1].endswith(_OF_SECONDS) else [_shape(part) for part in command] for command in commands
    ]


def _shape(part: str) -> str:
    if not part.isascii() or not part.isprintable():
        return "(bytes)"
    # Two entries of a stream may fall into one millisecond: then their ids differ after the dash.
    text = re.sub(r"\b\d{13,16}(-\d+)?\b", "(time)", part)
    return re.sub(r"\b\d{10}\b", "(second)", text)


def read(version: int) -> list[Command]:
    """Return the record of a format."""
    commands: list[Command] = json.loads((FOLDER / f"ledger-{version}.json").read_text())
    return commands


async def _main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = RedisProcess(Path(folder)).start()
        server.ready()
        try:
            redis: Any = connect(server.url)
            await write(redis)
            lines = ",\n".join(json.dumps(command) for command in await record(redis))
            sys.stdout.write(f"[\n{lines}\n]\n")
            await redis.aclose()
        finally:
            server.teardown()


if __name__ == "__main__":
    asyncio.run(_main())
