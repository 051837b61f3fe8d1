"""LeaseKeeper: renews the leases of every chunk that the process holds.

It is a thread with a connection of its own: the event loop may be busy, and a shutdown that drains must keep its
leases.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from redis import Redis
from redis.exceptions import RedisError

from callmill.ledger import Chunks
from callmill.ledger.scripts import script
from callmill.workers.chunk_run import ChunkRun

log = logging.getLogger(__name__)

LOST, RENEWED = 0, 1
"""Answers of ``renew.lua``; any other: renewed, but start no further calls."""


class LeaseKeeper(threading.Thread):
    """Renews leases until stopped.

    Args:
        redis: A connection of its own.
        chunks: The ledger.
        held: Returns the chunks held now; called in this thread.
        report: Takes each chunk with what ``renew.lua`` says of it, and when it was asked (monotonic, s): a lease runs
            from then at least, whenever the answer is read. Called in this thread.
        every_s: Seconds between renewals: a third of the lease.
    """

    def __init__(
        self,
        redis: Redis,
        chunks: Chunks,
        held: Callable[[], Sequence[ChunkRun]],
        report: Callable[[Sequence[ChunkRun], Sequence[int], float], None],
        *,
        every_s: float,
    ) -> None:
        super().__init__(name="callmill-leases", daemon=True)
        self._redis = redis
        self._renew = redis.register_script(script("renew"))
        self._chunks = chunks
        self._held = held
        self._report = report
        self._every_s = every_s
        self._stopping = False
        self._wanted = threading.Event()

    def run(self) -> None:
        """Renew until stopped; while Redis is away, try again sooner."""
        wait_s = self._every_s
        while True:
            self._wanted.wait(wait_s)
            self._wanted.clear()
            if self._stopping:
                return
            runs = self._held()
            wait_s = self._every_s
            if not runs:
                continue
            keys, arguments = self._chunks.renewal([run.claim for run in runs])
            asked_s = time.monotonic()
            try:
                self._report(runs, self._renew(keys=keys, args=arguments), asked_s)
            except (RedisError, OSError) as error:
                log.warning("leases not renewed: %s", error, extra={"action": "renew_failed"})
                wait_s = min(1.0, self._every_s)

    def renew_now(self) -> None:
        """Do not wait for the next renewal: it tells what became of the batches."""
        self._wanted.set()

    def stop(self) -> None:
        """End the thread and its connection."""
        self._stopping = True
        self._wanted.set()
        self.join()
        self._redis.close()
