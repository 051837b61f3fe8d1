"""Limiters that cannot reach Redis, or lose their connections to it, and what they tell each other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

import pytest
import redis
from limits_callers import FULL, LIMIT, calling
from limits_kit import rules
from local_nodes import RedisProcess
from redis.asyncio import Redis
from started_limiter import started
from tcp_forwarder import Forwarder

from callmill.limits import Limiter
from callmill.limits.control import LimitControl

pytestmark = pytest.mark.chaos

HORIZON_S = 0.25
BUSY_S = 0.25
"""What a busy machine may add to a reaction."""


@pytest.mark.usefixtures("redis_url")
@pytest.mark.parametrize(("silent", "away_s"), [(False, 5), (True, 3)])
def test_an_unreachable_redis_stops_new_calls_until_it_is_back(redis_server, tmp_path, silent, away_s):
    """Refused or unanswered: held slots are fired, then nothing starts; within 1 s of the return all goes on."""
    with Forwarder(redis_server.port) as address, calling(address.url, tmp_path) as callers:
        gone = monotonic()
        _ = address.silence() if silent else address.lead_to(None)
        callers.run_until(gone + away_s)
        address.lead_to(redis_server.port)
        back = monotonic()
        callers.run_until(back + 2.6)
        verdict = callers.end()
    assert verdict.worst() <= LIMIT
    assert verdict.within(gone + 0.6, back) == 0
    assert verdict.first_after(back) <= 1.0
    assert verdict.granted(back + 1.5, back + 2.5) >= FULL


def test_connections_that_are_cut_under_load_break_nothing(redis_url, tmp_path):
    """All connections are cut five times: no call fails, no second holds too much, and most of the rate is used."""
    with calling(redis_url, tmp_path) as callers, redis.Redis.from_url(redis_url) as connection:
        begin = monotonic()
        for _ in range(5):
            for kind in ("normal", "pubsub"):
                connection.client_kill_filter(_type=kind, skipme=True)
            callers.more(LIMIT // 5)
        end = monotonic()
        verdict = callers.end()
    assert verdict.worst() <= LIMIT
    assert verdict.granted(begin, end) >= 0.5 * LIMIT * (end - begin)


def test_a_pause_reaches_a_process_that_hears_no_news(redis_server: RedisProcess, redis_url):
    """A subscription that died without a word costs no more than the horizon: the next exchange tells of the pause."""

    async def scenario(address: Forwarder) -> None:
        fired = []

        async def call(limiter: Limiter) -> None:
            while True:
                limiter.settle(await limiter.acquire(), None)
                fired.append(monotonic())

        async with started(address.url, rules("200/second"), "deaf", socket_timeout=2) as deaf:
            tasks = [asyncio.create_task(call(deaf)) for _ in range(40)]
            await soon(lambda: len(fired) > 40)
            assert await asyncio.to_thread(address.silence, b"SUBSCRIBE") == 1
            async with started(redis_url, rules("200/second"), "teller", socket_timeout=2) as teller:
                told = monotonic()
                await teller.pause(1.2, "429")
                await soon(lambda: deaf.status().pause_reason)
                assert monotonic() - told < HORIZON_S + BUSY_S
            await soon(lambda: fired[-1] > told + 1.2)
            for task in tasks:
                task.cancel()
        assert [at for at in fired if told + HORIZON_S + BUSY_S < at < told + 1.2] == []

    with Forwarder(redis_server.port) as address:
        asyncio.run(scenario(address))


def test_a_pause_from_before_a_resume_ends_with_it(redis_server: RedisProcess, redis_url):
    """A process that could not tell of its pause, nor hear that somebody resumed the API, neither pauses nor waits."""

    async def scenario(address: Forwarder) -> None:
        async with started(address.url, rules("200/second")) as cut_off, Redis.from_url(redis_url) as connection:
            await asyncio.to_thread(address.lead_to, None)
            cut_off.hold(3600, "429")
            await LimitControl(connection, "api").resume(by="ben")
            await asyncio.to_thread(address.lead_to, redis_server.port)
            async with asyncio.timeout(10):
                cut_off.settle(await cut_off.acquire(), None)
            assert (await LimitControl(connection, "api").current()).pause is None

    with Forwarder(redis_server.port) as address:
        asyncio.run(scenario(address))


async def soon(condition: Callable[[], object]) -> None:
    """Wait for something that only the limiter knows."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the limiter tells its state only to those who ask
            await asyncio.sleep(0.001)
