"""A consumer that may be killed at any moment: ``python reader.py URL BATCH LOG``.

It writes every outcome down with its cursor before it takes the next, and goes on behind the last one written.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import msgspec
from history import EventLog, Read

from callmill.errors import RedisUnavailableError
from callmill.jobs import Outcome
from callmill.producer import Client

_decoder = msgspec.json.Decoder(Read)


def seen(batch_id: str, outcome: Outcome) -> Read:
    """Return an outcome as the history has it."""
    try:
        answer = outcome.json()
    except ValueError:
        answer = {}
    return Read(
        batch=batch_id,
        job=f"{batch_id}-{outcome.index}",
        ok=outcome.ok,
        call=answer.get("call"),
        told=answer.get("job"),
        cursor=outcome.cursor,
        at_s=time.time(),
        why="" if outcome.error is None else str(outcome.error),
    )


def last_cursor(log: Path) -> str | None:
    """Return where to go on; the piece of a line that a kill left is cut off."""
    if not log.exists():
        return None
    data = log.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        log.write_bytes(whole)
    return _decoder.decode(whole.splitlines()[-1]).cursor if whole else None


def main(url: str, batch_id: str, log: Path) -> None:
    """Read the batch to its end, through faults of Redis."""
    cursor = last_cursor(log)
    events = EventLog(log)
    with Client(url) as client:
        while True:
            try:
                for outcome in client.batch(batch_id).outcomes(cursor):
                    events.write(seen(batch_id, outcome))
                    cursor = outcome.cursor
            except RedisUnavailableError:
                time.sleep(0.1)
            else:
                return


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
