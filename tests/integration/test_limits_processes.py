"""Several processes over one limit, with real time: what an API's server would count."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import pytest
import redis
from limits_kit import worst_window
from redis.asyncio import Redis

from callmill.config.limit_spec import parse_limit
from callmill.limits import Limiter, LimitRules

pytestmark = pytest.mark.chaos

PROGRAM = Path(__file__).parents[1] / "limits_program.py"


class Process:
    """One calling process."""

    def __init__(self, arguments: list[str]) -> None:
        pipe = subprocess.PIPE
        self.child = subprocess.Popen([sys.executable, PROGRAM, *arguments], stdin=pipe, stdout=pipe, text=True)

    def ready(self) -> None:
        """Wait until its limiter runs."""
        assert self.child.stdout is not None
        assert self.child.stdout.readline() == "ready\n"

    def go(self) -> None:
        """Let it call."""
        assert self.child.stdin is not None
        self.child.stdin.write("\n")
        self.child.stdin.flush()

    def report(self) -> dict:
        """Wait for what it tells at its end."""
        out, _ = self.child.communicate(timeout=30)
        return json.loads(out)


@contextmanager
def calling(
    url: str, *limits: str, seconds: float, enforcer: str = "unknown", burst: int = 1
) -> Iterator[list[Process]]:
    """Three processes that begin to call together."""
    arguments = [url, enforcer, str(burst), str(seconds), "200", *limits]
    processes = [Process(arguments) for _ in range(3)]
    try:
        for process in processes:
            process.ready()
        for process in processes:
            process.go()
        yield processes
    finally:
        for process in processes:
            process.child.kill()
            process.child.communicate()


def fired_us(reports: list[dict]) -> list[int]:
    """Return when the calls of all processes started; one machine has one monotonic clock."""
    return sorted(round(at * 1e6) for report in reports for at in report["fired"])


@pytest.mark.parametrize(("rate", "amount"), [("100/second", 100), ("1000/second", 1000)])
def test_no_window_ever_holds_more_than_the_limit(redis_url, rate, amount):
    """Three processes never start more calls in any second than the limit, and most of the limit is granted."""
    with calling(redis_url, rate, seconds=2.5) as processes:
        reports = [process.report() for process in processes]
    fired = fired_us(reports)
    assert worst_window(fired, 1_000_000) <= amount
    assert sum(report["granted"] for report in reports) >= 0.9 * amount * (fired[-1] - fired[0]) / 1e6
    assert sum(report["round_trips"] for report in reports) <= 0.5 * len(fired)


def test_lost_state_is_no_burst(redis_url):
    """When Redis forgets everything in the midst of it, no second holds more than the limit, and the calls go on."""
    with calling(redis_url, "200/second", seconds=3) as processes, redis.Redis.from_url(redis_url) as connection:
        until = monotonic() + 1.2
        while monotonic() < until or not connection.exists("callmill:limit:{api}:meta"):
            connection.ping()
        connection.flushall()
        flushed_us = round(monotonic() * 1e6)
        fired = fired_us([process.report() for process in processes])
    assert worst_window(fired, 1_000_000) <= 200
    assert sum(at > flushed_us + 500_000 for at in fired) >= 50


def test_the_others_go_on_when_a_holder_is_killed(redis_url):
    """After SIGKILL of one of three processes the other two are granted the whole limit."""
    with calling(redis_url, "12000/minute", seconds=3.2) as processes:
        time_to_kill = monotonic() + 1
        while monotonic() < time_to_kill:
            processes[0].child.poll()
        processes[0].child.kill()
        killed_us = round(monotonic() * 1e6)
        reports = [process.report() for process in processes[1:]]
    late = [at for at in fired_us(reports) if killed_us + 1_000_000 <= at < killed_us + 2_000_000]
    assert len(late) >= 0.85 * 200


def test_a_pause_reaches_other_processes_at_once(redis_url):
    """A pause told by one process stops the calls of the others within 100 ms, until it is over."""

    async def pause() -> float:
        async with Redis.from_url(redis_url) as connection:
            limiter = Limiter(connection, "api", LimitRules((parse_limit("500/second"),)), worker="teller")
            await limiter.start()
            await asyncio.sleep(1.2)
            told = monotonic()
            await limiter.pause(0.8, "429")
            await limiter.aclose()
            return told

    with calling(redis_url, "500/second", seconds=3) as processes:
        told_us = round(asyncio.run(pause()) * 1e6)
        fired = fired_us([process.report() for process in processes])
    assert [at for at in fired if told_us + 100_000 < at < told_us + 800_000] == []
    assert any(at < told_us for at in fired)
    assert any(at > told_us + 800_000 for at in fired)
    assert worst_window(fired, 1_000_000) <= 500


def test_no_more_calls_in_flight_than_permits(redis_url):
    """Three processes never have more calls in flight than allowed, and all of them get their turn."""
    with calling(redis_url, "7 concurrent", seconds=4.5) as processes:
        reports = [process.report() for process in processes]
    changes = sorted((at, change) for report in reports for at, change in report["in_flight"])
    now, most = 0, 0
    for _, change in changes:
        now += change
        most = max(most, now)
    assert 5 <= most <= 7
    assert all(report["fired"] for report in reports)


@pytest.mark.parametrize("limit", ["4 concurrent", "1 concurrent"])
def test_a_busy_process_makes_room_for_a_newcomer(redis_url, limit):
    """A process whose calls never cease gives permits to one that comes later, be there enough or not."""

    async def scenario() -> None:
        async with Redis.from_url(redis_url) as connection:
            busy, late = (Limiter(connection, "api", LimitRules((parse_limit(limit),)), worker=name) for name in "ab")
            calls = dict.fromkeys((busy, late), 0)

            async def call(limiter: Limiter) -> None:
                while True:
                    slot = await limiter.acquire()
                    await asyncio.sleep(0.02)
                    calls[limiter] += 1
                    limiter.settle(slot, None)

            await busy.start()
            tasks = [asyncio.create_task(call(busy)) for _ in range(10)]
            while not calls[busy]:  # noqa: ASYNC110 - only the counter tells
                await asyncio.sleep(0.01)
            await late.start()
            tasks += [asyncio.create_task(call(late)) for _ in range(10)]
            while calls[late] < 10:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
            before = calls[busy]
            while calls[busy] == before:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await busy.aclose()
            await late.aclose()

    asyncio.run(asyncio.wait_for(scenario(), 10))
