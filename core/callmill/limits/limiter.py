"""The limiter of one API in one process: the face of everything else here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from time import monotonic

from msgspec import Struct
from redis.asyncio import Redis

from callmill.config.limit_spec import Unit
from callmill.errors import RedisUnavailableError, UsageError
from callmill.jobs.traffic import NORMAL, TrafficClass
from callmill.limits.channel import Channel
from callmill.limits.permits import PermitLease, Permits
from callmill.limits.refill import Refill
from callmill.limits.rules import LimitRules, clocks, concurrency, fixed_guard_s, validity_s
from callmill.limits.slots import Dispatcher, Slot
from callmill.limits.store import LimitStore
from callmill.limits.timing import Timing

LONGEST_PAUSE_S = 3600.0
START_WAIT_S = 2.0


class LimiterStatus(Struct, frozen=True):
    """What a limiter does now, as this process sees it.

    Attributes:
        waiting: Calls that wait for a slot.
        held: Slots granted and not yet due.
        granted: Slots granted since the start.
        fired: Slots given to calls since the start.
        slots_missed: Slots dropped because this process was late, though a call waited: host noise, lost rate.
        round_trips: Exchanges with Redis since the start.
        next_start_in_s: Seconds until the next held slot; None without one.
        paused_for_s: Seconds of pause left; 0 when not paused.
        pause_reason: Why it is paused; None when not paused.
        limited_by: The limit with the least slack at the last grant; None when no limit held a call back.
        rate: Calls per second granted to this process over the last 5 s.
        guard_s: Timing uncertainty that the pace of all workers allows for now.
        in_flight: Calls started and not settled.
        permits: Concurrency permits that this process holds; None without such a limit.
    """

    waiting: int
    held: int
    granted: int
    fired: int
    slots_missed: int
    round_trips: int
    next_start_in_s: float | None
    paused_for_s: float
    pause_reason: str | None
    limited_by: str | None
    rate: float
    guard_s: float
    in_flight: int
    permits: int | None


class Limiter:
    """Gives calls their start times so that all processes together keep the limits of one API.

    Made, used and closed on one event loop. While Redis cannot be reached, held slots are fired, then calls wait; they
    go on by themselves when it is back.
    """

    def __init__(self, redis: Redis, name: str, rules: LimitRules, *, worker: str) -> None:
        self._clocks = clocks(rules)
        valid_s = validity_s(rules)
        timing = Timing(valid_s, fixed_guard_s(rules))
        self._permits = Permits(concurrency(rules))
        self._dispatcher = Dispatcher(timing, self._permits, validity_s=valid_s, paced=bool(self._clocks))
        store = LimitStore(redis, name, worker, self._clocks)
        self._counts_tokens = any(clock.spec.unit is Unit.TOKENS for clock in self._clocks)
        self._refill = Refill(
            store,
            self._dispatcher,
            timing,
            counts_tokens=self._counts_tokens,
            counts_calls=any(clock.quota and clock.spec.unit is Unit.REQUESTS for clock in self._clocks),
        )
        self._lease = PermitLease(
            store, self._permits, wanting=lambda: self._dispatcher.waiting, on_change=self._permits_changed
        )
        self._channel = Channel(redis, store.channel, on_message=self._on_message, on_subscribed=self._refill.sync)
        self._telling = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    def expect(self, backlog: Callable[[TrafficClass, str], int]) -> None:
        """Reserve ahead for calls that will ask soon: ``backlog`` says how many, beyond those that wait already.

        It pays at high rates, where waiting for an exchange with Redis would bound the rate. Where tokens are counted
        it changes nothing: what the calls will cost is not known yet.
        """
        if not self._counts_tokens:
            self._dispatcher.backlog = lambda: backlog(NORMAL, "")

    async def start(self) -> None:
        """Publish the rules and listen for pauses; without Redis, go on trying in the background."""
        await self._refill.exchange()
        self._tasks = [asyncio.create_task(self._refill.run()), asyncio.create_task(self._channel.run())]
        if self._permits.limit is not None:
            self._tasks.append(asyncio.create_task(self._lease.run()))
        with suppress(TimeoutError):
            async with asyncio.timeout(START_WAIT_S):
                await self._channel.subscribed.wait()

    async def aclose(self) -> None:
        """Stop; what waits is cancelled, what is settled reaches Redis if it can. Idempotent."""
        tasks, self._tasks = self._tasks, []
        await asyncio.gather(*(_end(task) for task in tasks))
        self._dispatcher.close()
        if tasks:
            await self._refill.exchange()
            if self._permits.limit is not None:
                with suppress(RedisUnavailableError):
                    await self._lease.release()

    def try_acquire(self, tokens: int = 0, *, traffic: TrafficClass = NORMAL) -> Slot | None:  # noqa: ARG002
        """The slot that is due now, or None; never waits, never overtakes a call that does."""
        return self._dispatcher.take(tokens)

    async def acquire(self, tokens: int = 0, *, traffic: TrafficClass = NORMAL) -> Slot:  # noqa: ARG002
        """Wait for the start time of a call, first come first served in this process, and return its slot.

        A cancelled waiter loses nothing for the others.

        Raises:
            UsageError: The limiter is not started, or closed.
            asyncio.CancelledError: The caller gave up, or the limiter was closed.
        """
        slot = self._dispatcher.take(tokens)
        if slot is not None:
            return slot
        if not self._tasks:
            raise UsageError("the limiter does not run: await start() first, and acquire nothing after aclose()")
        first = False
        while True:
            future = self._dispatcher.enqueue(tokens, first=first)
            self._demand()
            try:
                slot = await future
            except asyncio.CancelledError:
                self._dispatcher.forget(future)
                raise
            if self._dispatcher.accept(slot):
                return slot
            first = True

    def settle(self, slot: Slot, tokens_used: int | None) -> None:
        """The call is over: charge what it really cost, where known, and free its permit; repeats are ignored."""
        if not slot.open:
            return
        slot.open = False
        self._permits.give()
        if tokens_used is not None:
            self._refill.settle(slot, tokens_used - slot.tokens)
        if self._permits.limit is not None and self._dispatcher.waiting:
            self._permits_changed()

    async def pause(self, seconds: float, reason: str) -> None:
        """Let no call start for ``seconds`` (an hour at most), here at once and in the fleet within milliseconds.

        A pause that already lasts longer stays. Without Redis the pause holds here and is told when Redis is back.
        """
        if seconds > 0:
            self.hold(seconds, reason)
            async with self._telling:  # many calls learn of one pause at once; the first one tells for all
                await self._refill.tell_pause()

    def hold(self, seconds: float, reason: str) -> None:
        """Let no call start here for ``seconds``, from this moment on; the part of ``pause`` that waits for nobody."""
        self._dispatcher.pause(monotonic() + min(seconds, LONGEST_PAUSE_S), reason)

    def status(self) -> LimiterStatus:
        """What this limiter does now."""
        now = monotonic()
        dispatcher, refill = self._dispatcher, self._refill
        paused_s = max(0.0, dispatcher.paused_until - now)
        return LimiterStatus(
            waiting=dispatcher.waiting,
            held=dispatcher.held,
            granted=refill.granted,
            fired=dispatcher.fired,
            slots_missed=dispatcher.missed,
            round_trips=refill.round_trips + self._lease.round_trips,
            next_start_in_s=None if dispatcher.next_start is None else max(0.0, dispatcher.next_start - now),
            paused_for_s=paused_s,
            pause_reason=dispatcher.pause_reason if paused_s else None,
            limited_by=str(self._clocks[refill.by - 1].spec) if refill.by else None,
            rate=refill.rate(),
            guard_s=refill.guard_s,
            in_flight=self._permits.used,
            permits=None if self._permits.limit is None else self._permits.granted,
        )

    def _demand(self) -> None:
        self._refill.demand()
        if self._permits.limit is not None:
            self._lease.demand()

    def _permits_changed(self) -> None:
        self._dispatcher.dispatch()
        self._demand()

    def _on_message(self, message: str) -> None:
        kind, _, rest = message.partition(" ")
        if kind == "boot":
            self._refill.sync()
        elif kind == "pause":
            left_us, _, reason = rest.partition(" ")
            self._dispatcher.pause(monotonic() + int(left_us) / 1e6, reason)


async def _end(task: asyncio.Task[None]) -> None:
    while not task.done():  # redis-py loses a cancellation that meets a time limit of its own
        task.cancel()
        await asyncio.wait([task], timeout=0.1)
