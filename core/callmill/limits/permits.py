"""Concurrency permits: leased from Redis in bulk, used and reused here without a round trip."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Protocol

from msgspec import Struct

from callmill.errors import RedisUnavailableError
from callmill.limits.exchange_turns import ExchangeTurns
from callmill.limits.turns import Turn

LEASE_S = 10.0
SAFETY_S = 1.0
HEARTBEAT_S = LEASE_S / 4
CONTENDED_S = 0.100
FEW_CONTENDED, SLOWER = 50, 1.5
"""Where leases of more models than that are contended at once, each asks more and more seldom until it gets something:
all of them together about as often as so many."""

LEARNING_S = 0.020
"""Between renewals while calls lack permits of a limit that is about to change."""

STALLED_S = 0.5
"""Where all permits of a limit that is learned are in use and no call has ended for so long, their calls hang."""

GAP_S = 0.010
UNLIMITED = sys.maxsize


class Lease(Struct, frozen=True):
    """What Redis leases to this worker.

    Attributes:
        held: Permits that are this worker's until the lease ends.
        goal: What it should come down to as its calls end, for others lack permits.
        unmet: How many other workers lack permits.
        limit: How many all workers may hold together.
        searching: Whether that is about to change, for a limit is being learned.
        wait_us: Nobody gets more for so long.
    """

    held: int
    goal: int
    unmet: int
    limit: int
    searching: int
    wait_us: int = 0


class Answers(Struct):
    """Calls that were answered since the last renewal, where a limit is learned.

    Attributes:
        count: How many.
        sum_us: The sum of their latencies.
        squares: The sum of the squares of these.
    """

    count: int = 0
    sum_us: float = 0.0
    squares: float = 0.0


class PermitStore(Protocol):
    """Where the leases are kept.

    Attributes:
        turns: Who may exchange now.
    """

    turns: ExchangeTurns

    async def permits(
        self, scope: str, *, want: int, used: int, held: int, limit: int, ttl_us: int, answers: Answers | None
    ) -> Lease:
        """Bring the lease of the API ('') or of one of its models or credentials up to date.

        ``limit``: what is configured, 0 for nothing. ``answers``: what a limit is learned from; None: none is learned.

        Raises:
            RedisUnavailableError: The lease may or may not be renewed.
        """
        ...


class Permits:
    """This worker's permits for an API, a model or a credential; without a limit there are always some.

    Attributes:
        limit: What is configured; None: nothing.
        learns: Whether a limit that nobody wrote down is learned.
        cap: The most calls in flight after a refusal; ``is_lifted``: until the next renewal only.
        ended: Calls that gave theirs back since the start.
        may_exceed: Whether a class with few calls in flight may exceed what is granted: the calls of others hang, or
            were refused.
    """

    def __init__(self, limit: int | None, scope: str = "", *, learns: bool = False) -> None:
        self.limit = limit
        self.learns = learns
        self.scope = scope
        self.answers = Answers()
        self.cap = UNLIMITED
        self.is_lifted = False
        self.in_all = 0
        self.granted = 0
        self.goal = 0
        self.used = 0
        self.ended = 0
        self.valid_until = 0.0
        self.may_exceed = False
        self._ended_before, self._still_from_s = 0, 0.0

    @property
    def limited(self) -> bool:
        """Whether calls need permits at all."""
        return self.limit is not None or self.learns

    @property
    def free(self) -> int:
        """Permits with which a call may start now."""
        if self.limit is None and not self.learns:
            return self.cap - self.used
        return min(self.granted, self.goal, self.cap) - self.used if monotonic() < self.valid_until else 0

    def free_for(self, turn: Turn) -> int:
        """The same for the calls of one class: where it may exceed them, it may have half as many in flight.

        Only where the limit is learned: it is an estimate, and what is written down is never exceeded.
        """
        free = self.free
        if not self.may_exceed:
            return free
        if free > 0 or monotonic() >= self.valid_until:
            self.may_exceed = False
            return free
        most = max(1, self.granted // 2) if self.cap == UNLIMITED else 1
        return min(most - turn.in_flight, 2 * max(1, self.granted) - self.used)

    def exceed(self) -> None:
        """Let classes with few calls in flight exceed what is granted until some of it is free, where it is learned."""
        self.may_exceed = self.learns and self.limit is None

    def watch(self, now_s: float) -> None:
        """Take note of whether calls end while none may start."""
        if self.ended != self._ended_before or self.free > 0:
            self._ended_before, self._still_from_s = self.ended, now_s
        elif now_s - self._still_from_s >= STALLED_S and self.used > 0:
            self.exceed()

    def answered(self, latency_s: float) -> None:
        """A call was answered."""
        answers, latency_us = self.answers, latency_s * 1e6
        answers.count += 1
        answers.sum_us += latency_us
        answers.squares += latency_us * latency_us

    @property
    def workers(self) -> float:
        """How many workers there are, as far as their parts of the permits tell: 1 where permits are not limited."""
        return max(1.0, self.in_all / self.granted) if self.learns and self.granted else 1.0

    def refused(self, others: int) -> None:
        """The API refused a call: no more than the others that are in flight until Redis has been told."""
        if self.learns:
            self.cap, self.is_lifted = min(self.cap, others), False

    def try_with(self, most: int) -> None:
        """No more calls in flight here than so many until the API takes one."""
        self.cap, self.is_lifted = most, False

    def lift(self) -> None:
        """Redis has been told of a refusal: as many calls in flight as the next renewal grants."""
        self.is_lifted = True


class PermitSet:
    """The permits that a call needs all at once: of the API, of its model, and of the credential that it uses.

    Args:
        shared: Those of the API and the model.
        keys: Those of each credential; empty where credentials have no such limit.
        turn: The account of the call's class.
    """

    def __init__(self, shared: Sequence[Permits], keys: Sequence[Permits] = (), *, turn: Turn) -> None:
        self._turn = turn
        self._shared = tuple(shared)
        self._keys = tuple(keys)
        self._only = self._shared[0] if len(self._shared) == 1 and not self._keys else None

    @property
    def free(self) -> int:
        """Calls that may start now."""
        turn = self._turn
        if (only := self._only) is not None:
            return only.free_for(turn) if only.may_exceed else only.free
        free = min([permits.free_for(turn) for permits in self._shared])
        return min(free, sum(permits.free_for(turn) for permits in self._keys)) if self._keys else free

    @property
    def only_model_lacks(self) -> bool:
        """Whether, of those that are lacking, there are some for calls of other models."""
        if len(self._shared) == 1 or self._shared[0].free <= 0:
            return False
        return not self._keys or sum(permits.free for permits in self._keys) > 0

    def free_of(self, key: int) -> int:
        """Calls that may start now with one of the credentials, as far as it alone is concerned."""
        return self._keys[key].free_for(self._turn) if self._keys else UNLIMITED

    def take(self, key: int) -> None:
        """A call starts with this credential."""
        self._turn.in_flight += 1
        for permits in self._shared:
            permits.used += 1
        if self._keys:
            self._keys[key].used += 1

    def give(self, key: int) -> None:
        """It is over, or never started."""
        self._turn.in_flight -= 1
        for permits in self._shared:
            permits.used -= 1
            permits.ended += 1
        if self._keys:
            self._keys[key].used -= 1
            self._keys[key].ended += 1


class PermitLease:
    """Keeps the lease: asks when calls lack permits, renews while it holds any, gives back what others lack.

    A worker that cannot renew stops starting calls a second before its lease ends in Redis.

    Args:
        contended: The leases of this worker that lack permits, or hold some that others lack.
        traffic: The class whose calls it is kept for; empty: all.
    """

    def __init__(
        self,
        store: PermitStore,
        permits: Permits,
        *,
        wanting: Callable[[], int],
        on_change: Callable[[], None],
        contended: set[PermitLease],
        traffic: str = "",
    ) -> None:
        self._store = store
        self._permits = permits
        self._wanting = wanting
        self._on_change = on_change
        self._wake = asyncio.Event()
        self._unmet = 0
        self._searching = 0
        self._wait_s = 0.0
        self._in_vain = 0
        self._contended = contended
        self._traffic = traffic
        self.round_trips = 0

    def demand(self) -> None:
        """Calls wait: see whether they lack permits."""
        if not self._wake.is_set() and self._lacking():
            self._wake.set()

    def sync(self) -> None:
        """Redis may have forgotten the lease: tell it soon."""
        if self._permits.granted:
            self._wake.set()

    async def run(self) -> None:
        """Keep the lease until cancelled."""
        while True:
            self._wake.clear()
            granted = self._permits.granted
            try:
                async with self._store.turns.turn(self._traffic):
                    await self.renew()
                pause_s = self._patience_s(granted) if self._is_contended() else GAP_S
            except RedisUnavailableError:
                pause_s = CONTENDED_S
            await asyncio.sleep(pause_s)  # whatever calls come meanwhile: no storm of renewals
            if not self._unmet and not self._lacking():
                with suppress(TimeoutError):
                    async with asyncio.timeout(HEARTBEAT_S if self._permits.granted else None):
                        await self._wake.wait()

    async def renew(self) -> None:
        """One exchange.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused.
        """
        permits = self._permits
        limit, used, held = permits.limit or 0, permits.used, permits.granted
        asked, is_lifted = monotonic(), permits.is_lifted
        want = used + self._wanting()
        answers = None
        if permits.learns:
            answers, permits.answers = permits.answers, Answers()
        if limit:
            want = min(limit, want)
            # Redis may leave us no more than we report as used: until it has answered, use no more.
            permits.granted = min(held, used)
        lease = await self._store.permits(
            permits.scope, want=want, used=used, held=held, limit=limit, ttl_us=round(LEASE_S * 1e6), answers=answers
        )
        self.round_trips += 1
        self._unmet = lease.unmet
        self._searching = lease.searching
        self._wait_s = lease.wait_us / 1e6
        permits.granted, permits.goal, permits.in_all = lease.held, lease.goal, lease.limit
        permits.valid_until = asked + LEASE_S - SAFETY_S
        permits.watch(asked)
        if is_lifted and permits.is_lifted:
            permits.try_with(UNLIMITED)
        self._on_change()

    async def release(self) -> None:
        """Give everything back that is not in use.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused; the lease then ends by itself.
        """
        self._contended.discard(self)
        async with self._store.turns.turn(self._traffic):
            used, limit = self._permits.used, self._permits.limit or 0
            await self._store.permits(
                self._permits.scope,
                want=used,
                used=used,
                held=used,
                limit=limit,
                ttl_us=round(LEASE_S * 1e6),
                answers=Answers() if self._permits.learns else None,
            )

    def _is_contended(self) -> bool:
        is_contended = self._unmet > 0 or self._lacking()
        (self._contended.add if is_contended else self._contended.discard)(self)
        return is_contended

    def _patience_s(self, granted_before: int) -> float:
        if self._searching:
            return LEARNING_S
        self._in_vain = self._in_vain + 1 if self._permits.granted == granted_before else 0
        times = min(SLOWER ** min(self._in_vain, FEW_CONTENDED), max(1.0, len(self._contended) / FEW_CONTENDED))
        return max(self._wait_s, CONTENDED_S * times)

    def _lacking(self) -> bool:
        permits = self._permits
        if permits.free > 0:
            return False
        may_come = permits.learns or permits.granted < (permits.limit or 0) or monotonic() >= permits.valid_until
        return may_come and self._wanting() > 0  # last: it looks at all groups
