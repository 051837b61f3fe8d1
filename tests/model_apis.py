"""Model APIs in virtual time: servers of which nobody knows the limits. Each takes a call and returns its answer."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

REFUSING_S = 0.001
"""How long a refusal takes."""


@dataclass(frozen=True)
class Answer:
    """An answer: whether the call was taken, and in how many seconds the API wants to be asked again."""

    taken: bool
    after_s: float | None = None


TAKEN = Answer(taken=True)


class Api(Protocol):
    """Whatever answers calls."""

    async def call(self, now_s: float) -> Answer:
        """Answer a call that arrives now."""
        ...


async def _refusal(after_s: float | None = None) -> Answer:
    await asyncio.sleep(REFUSING_S)
    return Answer(taken=False, after_s=after_s)


async def _work(latency_s: float) -> Answer:
    await asyncio.sleep(latency_s)
    return TAKEN


@dataclass
class BucketApi:
    """nginx's ``limit_req``: a bucket that takes ``burst`` calls beyond its rate."""

    rate: float
    burst: int
    latency_s: float = 0.001
    _excess: float = 0.0
    _last_s: float | None = None

    async def call(self, now_s: float) -> Answer:
        """Take a call unless the bucket is full."""
        excess = 0.0 if self._last_s is None else max(0.0, self._excess - (now_s - self._last_s) * self.rate + 1)
        if excess > self.burst:
            return await _refusal()
        self._excess, self._last_s = excess, now_s
        return await _work(self.latency_s)


@dataclass
class SlidingApi:
    """Takes so many calls in any window; ``tells``: with Retry-After."""

    amount: int
    window_s: float
    tells: bool = False
    latency_s: float = 0.001
    _log: deque[float] = field(default_factory=deque)

    async def call(self, now_s: float) -> Answer:
        """Take a call unless the window is full."""
        while self._log and self._log[0] <= now_s - self.window_s:
            self._log.popleft()
        if len(self._log) >= self.amount:
            return await _refusal(self._log[0] + self.window_s - now_s if self.tells else None)
        self._log.append(now_s)
        return await _work(self.latency_s)


@dataclass
class FixedApi:
    """Takes so many calls in each window, which begins with its first call, as express-rate-limit's do."""

    amount: int
    window_s: float
    tells: bool = False
    latency_s: float = 0.001
    _ends_s: float = 0.0
    _count: int = 0

    async def call(self, now_s: float) -> Answer:
        """Take a call unless the window is full."""
        if now_s >= self._ends_s:
            self._ends_s, self._count = now_s + self.window_s, 0
        self._count += 1
        if self._count > self.amount:
            return await _refusal(self._ends_s - now_s if self.tells else None)
        return await _work(self.latency_s)


@dataclass
class CrowdedApi:
    """nginx's ``limit_conn``: takes so many calls at once."""

    most: int
    latency_s: float = 0.2
    _in_flight: int = 0

    async def call(self, now_s: float) -> Answer:  # noqa: ARG002 - the port's signature
        """Take a call unless too many are in flight."""
        if self._in_flight >= self.most:
            return await _refusal()
        self._in_flight += 1
        try:
            return await _work(self.latency_s)
        finally:
            self._in_flight -= 1


class QueueingApi:
    """M/M/c: so many servers that work an exponential time on each call; the other calls wait."""

    def __init__(self, servers: int, mean_s: float) -> None:
        self._free, self._mean_s, self._random = asyncio.Semaphore(servers), mean_s, random.Random(1)

    async def call(self, now_s: float) -> Answer:  # noqa: ARG002 - the port's signature
        """Take every call."""
        async with self._free:
            return await _work(self._random.expovariate(1 / self._mean_s))


@dataclass
class RefusingApi:
    """Refuses everything for some seconds with a hint, then takes everything."""

    for_s: float
    hint_s: float | None
    _until_s: float | None = None

    async def call(self, now_s: float) -> Answer:
        """Refuse a call for a while."""
        if self._until_s is None:
            self._until_s = now_s + self.for_s
        return await (_refusal(self.hint_s) if now_s < self._until_s else _work(0.001))


@dataclass
class StumblingApi:
    """Takes everything, but refuses one call of so many."""

    every: int
    latency_s: float = 0.05
    _calls: int = 0

    async def call(self, now_s: float) -> Answer:  # noqa: ARG002 - the port's signature
        """Take a call unless its turn has come."""
        self._calls += 1
        return await (_refusal(1.0) if self._calls % self.every == 0 else _work(self.latency_s))


@dataclass
class PunishingApi:
    """Follows its first refusal by some seconds in which it refuses everything."""

    api: Api
    for_s: float
    _until_s: float | None = None

    async def call(self, now_s: float) -> Answer:
        """Take a call if the API behind does."""
        if self._until_s is not None and now_s < self._until_s:
            return await _refusal()
        answer = await self.api.call(now_s)
        if not answer.taken and self._until_s is None:
            self._until_s = now_s + self.for_s
        return answer
