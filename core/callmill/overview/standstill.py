"""Standstill: whether a batch cannot continue until someone fixes an API."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from redis.asyncio import Redis

from callmill.holds import Held, current_holds, held_in_words
from callmill.ledger.batches import Batches
from callmill.ledger.fleet import Fleet, LaneStatus
from callmill.ledger.session import LedgerSession
from callmill.limits.owners import limiter_names
from callmill.overview.backlog import read_backlog
from callmill.overview.progress import Progress
from callmill.overview.served import lanes_of

_LOOKS = 3
"""A batch stands still when this many looks in a row find no progress and the same holds."""

_SOON_S = 5.0
"""A hold that is retried within this time may end soon."""

_EVER_S = 10 * 365 * 86_400.0


class StandstillWatch:
    """Looks at one batch now and then.

    Args:
        session: The ledger.
        limiter: The limiter's Redis.
        batch_id: The batch.
    """

    def __init__(self, session: LedgerSession, limiter: Redis, batch_id: str) -> None:
        self._session = session
        self._limiter = limiter
        self._batch_id = batch_id
        self._done = -1
        self._looks = 0

    async def look(self, progress: Progress) -> str:
        """Return which APIs are held, why, and what to do, if the batch waits for nothing else; otherwise "".

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused.
        """
        if progress.done != self._done or progress.ended:
            self._done, self._looks = progress.done, 0
            return ""
        why = await self._why()
        self._looks = self._looks + 1 if why else 0
        return why if self._looks >= _LOOKS else ""

    async def _why(self) -> str:
        record, workers = await Batches(self._session).record(self._batch_id), await Fleet(self._session).workers()
        identities = {api: at.identity if (at := record.bound_to.get(api)) else "" for api in record.apis}
        names, lanes = await limiter_names(self._limiter, identities), lanes_of(record, workers)
        holds = await current_holds(self._limiter, list(names.values())) if names else []
        held = {
            api: line
            for api, known in zip(names, holds, strict=True)
            if (line := _held(known.get(""), [lane for lane in lanes if lane.api == api]))
        }
        if not held:
            return ""
        if others := {api: identity for api, identity in identities.items() if api not in held}:
            backlog = await read_backlog(self._session, others, {worker.id for worker in workers}, soon_s=_EVER_S)
            if any(api in backlog.apis for api in others):
                return ""
        return "; ".join(held_in_words(api, line) for api, line in held.items())


def _held(held: Held | None, lanes: Sequence[LaneStatus]) -> str:
    """Return cause and remedy if an API is held in every worker and not retried soon."""
    next_in_s = inf if held is None or held.next_in_s is None else held.next_in_s
    if next_in_s <= _SOON_S or not all(lane.held and not lane.in_flight and not lane.diverted_to for lane in lanes):
        return ""
    if held is not None:
        return held.line
    return lanes[0].held if lanes else ""
