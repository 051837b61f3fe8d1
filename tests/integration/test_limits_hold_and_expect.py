"""What a process may tell its limiter ahead: that calls will come, or that none may start."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from limits_kit import rules
from started_limiter import started

from callmill.limits import Limiter

HORIZON_S = 0.25


def test_hold_stops_calls_here_at_once_and_elsewhere_with_the_next_exchange(redis_url):
    """``hold`` waits for nobody: nothing starts here from now on, and the fleet hears of it without ``pause``."""

    async def scenario() -> None:
        async with (
            started(redis_url, rules("200/second"), "holder", socket_timeout=2) as holder,
            started(redis_url, rules("200/second"), "other", socket_timeout=2) as other,
        ):
            await asyncio.gather(*(holder.acquire() for _ in range(5)))
            waiting = [asyncio.create_task(holder.acquire()) for _ in range(5)]
            await soon(lambda: holder.status().held)
            held = monotonic()
            waiting = [call for call in waiting if not call.done()]  # on a busy machine one may have started already
            holder.hold(0.7, "429")
            assert holder.try_acquire() is None
            assert (holder.status().held, holder.status().pause_reason) == (0, "429")
            await soon(lambda: other.status().paused_for_s)
            assert other.status().pause_reason == "429"
            holder.hold(0.1, "shorter")
            slots = [*await asyncio.gather(*waiting), await other.acquire()]
            assert min(slot.start for slot in slots) >= held + 0.7 - 0.001

    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_an_expected_backlog_gets_its_slots_before_it_asks(redis_url):
    """Calls that come one after the other use the whole rate when they are expected, far less when they are not."""

    async def rate(limiter: Limiter) -> float:
        await limiter.acquire()
        begin = monotonic()
        for _ in range(100):
            limiter.settle(await limiter.acquire(), None)
        return 100 / (monotonic() - begin)

    async def scenario() -> None:
        async with started(redis_url, rules("500/second"), "w", socket_timeout=2) as limiter:
            unexpected = await rate(limiter)
            limiter.expect(lambda _traffic, _model: 50)
            assert await rate(limiter) > max(1.5 * unexpected, 350)
            limiter.expect(lambda _traffic, _model: 0)
            await asyncio.sleep(HORIZON_S)  # what was asked for before may still come
            granted = limiter.status().granted
            await asyncio.sleep(HORIZON_S)
            assert limiter.status().granted == granted

    asyncio.run(asyncio.wait_for(scenario(), 15))


def test_nothing_is_reserved_ahead_where_tokens_are_counted(redis_url):
    """What calls will cost is not known before they ask: an expected backlog reserves no tokens for them."""

    async def scenario() -> None:
        async with started(redis_url, rules("500/second", "60000 tokens/minute"), "w", socket_timeout=2) as limiter:
            limiter.expect(lambda _traffic, _model: 50)
            limiter.settle(await limiter.acquire(10), None)
            await asyncio.sleep(HORIZON_S)
            status = limiter.status()
            assert (status.held, status.granted - status.slots_missed) == (0, 1)  # missed: this process came too late

    asyncio.run(scenario())


async def soon(condition: Callable[[], object]) -> None:
    """Wait for something that only the limiter knows."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the limiter tells its state only to those who ask
            await asyncio.sleep(0.001)
