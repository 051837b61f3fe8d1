"""Committer: brings outcomes to the ledger, many chunks in one round trip.

What a commit could not settle because Redis was away is sent again as it was, before anything newer of its chunk: a
bundle that did get through is recognised and not recorded twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import NamedTuple

from callmill.errors import CallmillError, RedisUnavailableError, StaleLeaseError
from callmill.ledger import Bundle, ChunkRef, Chunks, CommitResult, Finish
from callmill.workers.chunk_run import ChunkRun

log = logging.getLogger(__name__)

EVERY_S = 0.1
"""Outcomes wait this long for company, unless their chunk is over."""

_FIRST_RETRY_S, _LAST_RETRY_S = 0.1, 2.0


class _Entry(NamedTuple):
    run: ChunkRun
    bundle: Bundle
    finish: Finish | None


class Committer:
    """Records bundles of all chunks of one process. Belongs to one event loop.

    Args:
        chunks: The ledger.
        publish: Takes the chunks that are queued again and need a hint.
        on_reachable: Called with False when Redis goes away, with True when it is back.
    """

    def __init__(
        self,
        chunks: Chunks,
        publish: Callable[[list[ChunkRef]], None],
        on_reachable: Callable[[bool], None],
    ) -> None:
        self._chunks = chunks
        self._publish = publish
        self._on_reachable = on_reachable
        self._changed: dict[ChunkRun, None] = {}
        self._finished: dict[ChunkRun, Finish] = {}
        self._unsettled: list[_Entry] = []
        self._reachable = True
        self._work, self._urgent = asyncio.Event(), asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def changed(self, run: ChunkRun) -> None:
        """Note that the chunk has something to record."""
        self._changed[run] = None
        self._idle.clear()
        self._work.set()

    def finished(self, run: ChunkRun, finish: Finish) -> None:
        """Note that the chunk is to be given up, after its last bundle."""
        self._finished[run] = finish
        self._idle.clear()
        self._work.set()
        self._urgent.set()

    async def run(self) -> None:
        """Record what comes, until cancelled."""
        loop = asyncio.get_running_loop()
        next_full_s, retry_s = 0.0, _FIRST_RETRY_S
        while True:
            await self._work.wait()
            await self._gather_until(next_full_s)
            full = loop.time() >= next_full_s
            if full:
                next_full_s = loop.time() + EVERY_S
            await self._settle(self._unsettled + self._take(full=full))
            if self._unsettled:
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, _LAST_RETRY_S)
                continue
            retry_s = _FIRST_RETRY_S
            if not self._changed and not self._finished:
                self._work.clear()
                self._idle.set()

    async def idle(self) -> None:
        """Wait until everything is recorded."""
        await self._idle.wait()

    async def _gather_until(self, time_s: float) -> None:
        """Let outcomes come in until then, or until a chunk is over."""
        loop = asyncio.get_running_loop()
        wait_s = time_s - loop.time()
        if wait_s > 0 and not self._urgent.is_set():
            timer = loop.call_later(wait_s, self._urgent.set)
            await self._urgent.wait()
            timer.cancel()
        self._urgent.clear()

    def _take(self, *, full: bool) -> list[_Entry]:
        entries = []
        runs = {**self._changed, **self._finished} if full else dict(self._finished)
        waiting = {entry.run for entry in self._unsettled}  # what is newer must not overtake
        for run in runs:
            if run in waiting:
                continue
            finish = self._finished.pop(run, None)
            self._changed.pop(run, None)
            if not run.over.done() and (run.bundle or finish is not None):
                entries.append(_Entry(run, run.bundle, finish))
                run.bundle = Bundle()
        return entries

    async def _settle(self, entries: list[_Entry]) -> None:
        if not entries:
            return
        results: list[CommitResult | CallmillError]
        try:
            results = await self._chunks.commit_all([(run.claim, bundle, finish) for run, bundle, finish in entries])
        except RedisUnavailableError as error:
            results = [error] * len(entries)
        self._unsettled = [
            entry for entry, result in zip(entries, results, strict=True) if not self._settled(entry, result)
        ]
        if self._unsettled:
            why = next(result for result in results if isinstance(result, RedisUnavailableError))
            log.warning("outcomes wait for Redis: %s", why, extra={"action": "commit_retry"})
        if self._reachable == bool(self._unsettled):
            self._reachable = not self._unsettled
            self._on_reachable(self._reachable)

    def _settled(self, entry: _Entry, result: CommitResult | CallmillError) -> bool:
        if isinstance(result, StaleLeaseError):
            log.warning("lease lost: %s", result, extra={"action": "lease_lost", "chunk": entry.run.claim.ref.member})
            entry.run.abandon()
            return True
        if isinstance(result, CallmillError):
            return False
        if result.hint_wanted:
            self._publish([entry.run.claim.ref])
        if entry.finish is not None:
            if not entry.run.over.done():
                entry.run.over.set_result(None)
        elif not result.proceed:
            entry.run.close()
        return True
