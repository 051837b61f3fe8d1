"""One process that calls as fast as its limiter lets it; when its calls started is on disk, whatever kills it.

Argument: a ``Caller`` as JSON. Prints ``ready``, waits for a line, calls until standard input ends, prints its report.
"""

from __future__ import annotations

import asyncio
import os
import struct
import sys
from time import monotonic
from typing import Any

import msgspec
import uvloop
from redis.asyncio import Redis

from callmill.config.limit_spec import Enforcer, parse_limit
from callmill.limits import Limiter, LimitRules, permits

SHIFT_KEY = "test:shift_us"
RECORD = struct.Struct("<dd")
SAMPLE_S = 0.02
EARLY_S = 0.002
"""A timer of uvloop may come early by this; a call never ends before the server has done its work."""

SHIFTED_TIME = f"""
local real = redis
local redis = setmetatable({{call = function(command, ...)
  if command ~= 'TIME' then return real.call(command, ...) end
  local time = real.call('TIME')
  local us = time[1] * 1000000 + time[2] + tonumber(real.call('GET', '{SHIFT_KEY}') or 0)
  return {{math.floor(us / 1000000), us % 1000000}}
end}}, {{__index = real}})
"""


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """What a calling process is told.

    Attributes:
        url: Of Redis.
        name: Of the worker.
        limits: As texts.
        log: Where the starts of calls go, and between them how many slots were granted: pairs of doubles, the time of
            the monotonic clock and the number granted; -1 for a start.
        callers: How many calls ask at once.
        call_s: How long the server is at work on a call.
        lease_s: Length of a lease of permits; 0: as it is.
    """

    url: str
    name: str
    limits: list[str]
    log: str
    callers: int = 40
    call_s: float = 0.0
    lease_s: float = 0.0


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a calling process tells at its end."""

    granted: int
    missed: int
    waiting: int
    errors: list[str]


class ShiftedRedis(Redis):
    """A client whose scripts see the server's clock shifted by what ``SHIFT_KEY`` holds."""

    def register_script(self, script: Any) -> Any:
        """Register the script with a clock of the test's."""
        return super().register_script(SHIFTED_TIME + script)


async def main(told: Caller) -> None:
    """Call with endless demand and report."""
    if told.lease_s:
        permits.LEASE_S, permits.SAFETY_S = told.lease_s, told.lease_s / 10
        permits.HEARTBEAT_S = told.lease_s / 4
    redis = ShiftedRedis.from_url(told.url, socket_timeout=2)
    rules = LimitRules(tuple(parse_limit(text) for text in told.limits), Enforcer.UNKNOWN)
    limiter = Limiter(redis, "api", rules, worker=told.name)
    await limiter.start()
    say("ready")
    await asyncio.to_thread(sys.stdin.readline)
    log = os.open(told.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def call() -> None:
        while True:
            slot = await limiter.acquire()
            os.write(log, RECORD.pack(monotonic(), -1))
            if told.call_s:
                await asyncio.sleep(told.call_s + EARLY_S)
            limiter.settle(slot, None)

    async def sample() -> None:
        while True:
            os.write(log, RECORD.pack(monotonic(), limiter.status().granted))
            await asyncio.sleep(SAMPLE_S)

    tasks = [asyncio.create_task(work) for work in (sample(), *(call() for _ in range(told.callers)))]
    await asyncio.to_thread(sys.stdin.read)
    errors = [repr(task.exception()) for task in tasks if task.done()]
    status = limiter.status()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await limiter.aclose()
    await redis.aclose()
    os.close(log)
    report = Report(granted=status.granted, missed=status.slots_missed, waiting=status.waiting, errors=errors)
    say(msgspec.json.encode(report).decode())


def say(line: str) -> None:
    """Tell the test."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    uvloop.run(main(msgspec.json.decode(sys.argv[1], type=Caller)))
