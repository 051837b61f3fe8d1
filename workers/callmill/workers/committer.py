"""Committer: brings outcomes to the ledger, many chunks in one round trip.

What a commit could not settle because Redis was away is sent again as it was, before anything newer of its chunk: a
bundle that did get through is recognised and not recorded twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import NamedTuple

from callmill.config.beat import until_beat_s
from callmill.errors import CallmillError, RedisUnavailableError, StaleLeaseError, UnknownFormatError
from callmill.ledger import Bundle, ChunkRef, Chunks, CommitResult, Finish
from callmill.workers.chunk_run import ChunkRun
from callmill.workers.log_fields import of_claim

log = logging.getLogger(__name__)

EVERY_S = 0.1
"""Outcomes wait this long for company, unless their chunk is over; what a kill -9 finds waiting is called again."""

MANY = 32
"""If so many went out together, those that follow wait half as long."""

_FIRST_RETRY_S, _LAST_RETRY_S = 0.1, 2.0

_MOST_WAITING_BYTES = 64 * 2**20
"""Bodies that wait to be recorded; with more of them no further call starts, whyever they wait."""

_MOST_AT_ONCE_BYTES = 32 * 2**20
_LARGE_BYTES = 64 * 2**10

_MOST_IN_BUNDLE_BYTES = 16 * 2**20
"""Redis takes half a GiB in one piece; readers take a bundle as a whole, too."""


class _Entry(NamedTuple):
    run: ChunkRun
    bundle: Bundle
    finish: Finish | None


class Committer:
    """Records bundles of all chunks of one process. Belongs to one event loop.

    Args:
        chunks: The ledger.
        publish: Takes the chunks that are queued again and need a hint.
        on_flow: Called with False when outcomes pile up, with True when they are recorded again.
        recorded: Called with the API and the bundle once it is recorded.
        waiting: Called with the bytes of bodies that wait to be recorded.
        most_at_once_bytes: Bodies that go out in one round trip, or a little more.
    """

    def __init__(
        self,
        chunks: Chunks,
        publish: Callable[[list[ChunkRef]], None],
        on_flow: Callable[[bool], None],
        recorded: Callable[[str, Bundle], None],
        *,
        waiting: Callable[[int], None] = lambda _: None,
        most_at_once_bytes: int | None = None,
    ) -> None:
        self._chunks = chunks
        self._publish = publish
        self._on_flow = on_flow
        self._recorded = recorded
        self._waiting, self._most_at_once_bytes = waiting, most_at_once_bytes or _MOST_AT_ONCE_BYTES
        self._changed: dict[ChunkRun, None] = {}
        self._finished: dict[ChunkRun, Finish] = {}
        self._unsettled: list[_Entry] = []
        self._waiting_bytes = 0
        self._flows, self._gave_up = True, False
        self._work, self._urgent = asyncio.Event(), asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def changed(self, run: ChunkRun, size_bytes: int = 0) -> None:
        """Note that the chunk has something to record, or so many bytes more of it."""
        if not self._changed:  # else it is at work
            self._idle.clear()
            self._work.set()
        self._changed[run] = None
        self._waiting_bytes += size_bytes
        if size_bytes > _LARGE_BYTES:
            self._waiting(self._waiting_bytes)
        if self._waiting_bytes > _MOST_WAITING_BYTES and self._flows:
            self._tell()

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
            entries = self._take(full=full)
            if full:
                every_s = EVERY_S / 2 if sum(len(entry.bundle.outcomes) for entry in entries) >= MANY else EVERY_S
                next_full_s = loop.time() + min(until_beat_s(every_s), every_s)
            await self._settle(self._unsettled + entries)
            if self._unsettled:
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, _LAST_RETRY_S)
                continue
            retry_s = _FIRST_RETRY_S
            if not self._changed and not self._finished:
                self._work.clear()
                self._idle.set()

    async def idle(self) -> None:
        """Wait until everything is recorded, or given up."""
        await self._idle.wait()

    def give_up(self) -> None:
        """Record no more of what waits for Redis: the jobs run again when the leases of their chunks have ended."""
        self._gave_up = True

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
        entries: list[_Entry] = []
        room_bytes = self._most_at_once_bytes
        runs = {**self._changed, **self._finished} if full else dict(self._finished)
        waiting = {entry.run for entry in self._unsettled}  # what is newer must not overtake
        for run in runs:
            if run in waiting or room_bytes <= 0:
                continue
            bundle = run.take_bundle(min(_MOST_IN_BUNDLE_BYTES, self._most_at_once_bytes))
            room_bytes -= bundle.size_bytes
            finish = None
            if not run.bundle:  # else the rest, and the end, are for the next round
                finish = self._finished.pop(run, None)
                self._changed.pop(run, None)
            if (bundle or finish is not None) and not run.over.done():
                entries.append(_Entry(run, bundle, finish))
        return entries

    async def _settle(self, entries: list[_Entry]) -> None:
        if not entries:
            return
        results: list[CommitResult | CallmillError]
        try:
            results = await self._chunks.commit_all([(run.claim, bundle, finish) for run, bundle, finish in entries])
        except RedisUnavailableError as error:
            results = [error] * len(entries)
        unsettled = [entry for entry, result in zip(entries, results, strict=True) if not self._settled(entry, result)]
        self._unsettled = [] if self._gave_up else unsettled
        if self._unsettled:
            why = next(result for result in results if isinstance(result, RedisUnavailableError))
            log.warning("outcomes wait for Redis: %s", why, extra={"action": "commit_retry"})
        self._waiting_bytes = sum(run.bundle.size_bytes for run in self._changed)
        self._waiting_bytes += sum(entry.bundle.size_bytes for entry in self._unsettled)
        self._waiting(self._waiting_bytes)
        self._tell()

    def _tell(self) -> None:
        flows = not self._unsettled and self._waiting_bytes <= _MOST_WAITING_BYTES
        if flows != self._flows:
            self._flows = flows
            self._on_flow(flows)

    def _settled(self, entry: _Entry, result: CommitResult | CallmillError) -> bool:
        if isinstance(result, (StaleLeaseError, UnknownFormatError)):
            log.warning("lease lost: %s", result, extra={"action": "lease_lost", **of_claim(entry.run.claim)})
            entry.run.abandon()
            return True
        if isinstance(result, CallmillError):
            return False
        self._recorded(entry.run.claim.ref.api, entry.bundle)
        if result.hint_wanted:
            self._publish([entry.run.claim.ref])
        if entry.finish is not None:
            entry.run.recorded()
        elif not result.proceed:
            entry.run.close()
        return True
