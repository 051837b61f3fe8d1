"""Reconciler: puts back what nobody works on, and publishes hints that were lost.

Every worker runs it behind a short lock, so that one at a time does. It heals a worker that was killed, a message that
the broker lost, a producer that died while it started its batch, a move to another API that was cut off, and a retry
whose time has come; nothing else is needed for any of them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from redis.asyncio import Redis
from redis.exceptions import RedisError

from callmill.config.celery import lane_queue_key
from callmill.errors import CorruptBatchError, RedisUnavailableError, UnknownFormatError
from callmill.ledger import Batches, ChunkRef, Chunks, LedgerSession, Lines
from callmill.ledger.api_bindings import ApiBindings
from callmill.ledger.fleet import Fleet
from callmill.ledger.gone import forget_gone
from callmill.ledger.keys import RECONCILER_LOCK
from callmill.ledger.lines import FORGOTTEN_AFTER_S
from callmill.workers.alert_watch import AlertWatch
from callmill.workers.batch_keeper import BatchKeeper
from callmill.workers.newer_batches import NewerBatches
from callmill.workers.rhythm import Rhythm

log = logging.getLogger(__name__)

_EVERY_S = 1.0
_LEAST_EVERY_S = 10.0
"""Where no batch is to be looked after: an older Callmill did not write down everything that says so."""

_LOCK_MS = 3_000
_STRANDED_AFTER_MS = 5_000
_STRANDED_EVERY_S = _LOOK_EVERY_S = 1.5
"""Every other round."""

_PRUNE_EVERY_S = FORGOTTEN_AFTER_S / 10


class Publish(Protocol):
    """Publishes hints, where asked before those that are out."""

    def __call__(self, refs: list[ChunkRef], *, first: bool = False) -> None:
        """Publish a hint for each chunk."""
        ...


class Reconciler:
    """Looks after the chunks of all batches. Belongs to one event loop.

    Args:
        session: The ledger's connection.
        broker: That of the hints.
        chunks: The ledger.
        publish: Publishes hints.
        take: Runs a chunk here, if it can, that was put back and that nobody has taken since.
        watch: Notes what alerts are to tell.
        rhythm: Says when to look.
        worker: Names this process.
        done: Counts what was done: ``put_back``, ``published_again``, ``unparked`` chunks.
        open_batch_s: How long a batch that is not sealed is kept without a word from its producer.
        newer: Is told of what only a newer Callmill can read.
    """

    def __init__(
        self,
        session: LedgerSession,
        broker: Redis,
        chunks: Chunks,
        publish: Publish,
        take: Callable[[ChunkRef], object],
        *,
        watch: AlertWatch,
        rhythm: Rhythm,
        worker: str,
        done: Counter[str],
        open_batch_s: float,
        newer: NewerBatches,
    ) -> None:
        self._session, self._redis = session, session.redis
        self._broker = broker
        self._batches = Batches(session)
        self._bindings = ApiBindings(session)
        self._chunks = chunks
        self._fleet = Fleet(session)
        self._lines = Lines(session)
        self._publish = publish
        self._take = take
        self._watch = watch
        self._worker = worker
        self._done = done
        self._newer = newer
        self._keeper = BatchKeeper(self._batches, chunks, newer, open_batch_s=open_batch_s)
        self._rhythm = rhythm
        self._mine_until_s = self._next_round_s = self._next_prune_s = 0.0
        self._next_look_s = self._next_stranded_s = 0.0

    async def run(self) -> None:
        """Reconcile every second, until cancelled."""
        while True:
            await self._rhythm.pause(_EVERY_S)
            try:
                if await self._has_lock():
                    # Side by side: answers that come together wake this process once.
                    for ended in await asyncio.gather(self._round(), self._look(), return_exceptions=True):
                        if ended is not None:
                            raise ended
            except (RedisUnavailableError, RedisError, OSError, ValueError) as error:  # what stands there is anybody's
                log.warning("not reconciled: %s", error, extra={"action": "reconcile_failed"})

    async def _round(self) -> None:
        if time.monotonic() >= self._next_round_s or await self._batches.any_to_look_after():
            await self.reconcile()
            self._next_round_s = time.monotonic() + _LEAST_EVERY_S

    async def _look(self) -> None:
        if time.monotonic() < self._next_look_s:
            return
        self._next_look_s = time.monotonic() + _LOOK_EVERY_S
        try:
            await self._watch.look()
        except RedisUnavailableError:
            raise
        except Exception:  # a bug there must not end the worker: calls matter more than the word that goes around
            log.exception("nothing noted for alerts, because of a bug", extra={"action": "alert_watch_bug"})

    async def reconcile(self) -> None:
        """Do one round."""
        requeued, resumed, moving, stranded = await asyncio.gather(
            self._chunks.requeue_due(), self._batches.resumed(), self._bindings.moving(), self._stranded()
        )
        for batch_id, error in requeued.newer.items():
            self._newer.met(batch_id, error)
        if due := requeued.put_back + requeued.not_taken:
            # Before what waits: a dead worker's calls are not to wait for a whole backlog, nor is a retry that was due.
            self._publish(due, first=True)
        for ref in requeued.not_taken:  # nobody has a thread to spare
            self._take(ref)
        refs = await self._of_each(resumed, self._batches.unpark)
        # Whoever moved these batches may have died before all their chunks had followed.
        moved = await self._of_each(moving, self._bindings.follow)
        self._done["put_back"] += len(requeued.put_back)
        self._done["published_again"] += len(requeued.not_taken) + len(stranded)
        self._done["unparked"] += len(refs)
        refs += moved + stranded
        await self._prune()
        await self._keeper.look()
        if refs:
            self._publish(refs)
        if chunks := len(due) + len(refs):
            log.info("%d chunks put back", chunks, extra={"action": "reconciled", "chunks": chunks})

    async def _of_each(
        self, batch_ids: Iterable[str], queue: Callable[[str], Awaitable[list[ChunkRef]]]
    ) -> list[ChunkRef]:
        """Queue chunks of each batch; return those that need a hint. Batches of a newer Callmill are left alone."""
        refs: list[ChunkRef] = []
        for batch_id in batch_ids:
            try:
                refs += await queue(batch_id)
            except UnknownFormatError as error:
                self._newer.met(batch_id, error)
            except CorruptBatchError as error:
                log.warning("batch %s left: %s", batch_id, error, extra={"action": "corrupt_batch", "batch": batch_id})
        return refs

    async def _prune(self) -> None:
        if time.monotonic() >= self._next_prune_s:
            await self._lines.prune()
            await forget_gone(self._session)
            self._next_prune_s = time.monotonic() + _PRUNE_EVERY_S

    async def _stranded(self) -> list[ChunkRef]:
        if time.monotonic() < self._next_stranded_s:
            return []
        self._next_stranded_s = time.monotonic() + _STRANDED_EVERY_S
        return await self._chunks.stranded(await self._without_hints(), _STRANDED_AFTER_MS)

    async def _without_hints(self) -> list[str]:
        """Return the lines whose queues are empty."""
        apis, lines = await asyncio.gather(self._fleet.apis(), self._lines.some())
        names = [*apis, *map(str, lines)]
        pipeline = self._broker.pipeline(transaction=False)
        for name in names:
            pipeline.llen(lane_queue_key(name))
        return [name for name, hints in zip(names, await pipeline.execute(), strict=True) if not hints]

    async def _has_lock(self) -> bool:
        asked_s = time.monotonic()
        if asked_s >= self._mine_until_s and await self._redis.set(RECONCILER_LOCK, self._worker, nx=True, px=_LOCK_MS):
            self._mine_until_s = asked_s + _LOCK_MS / 1000
        return asked_s < self._mine_until_s
