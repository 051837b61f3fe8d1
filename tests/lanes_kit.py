"""Lanes of several processes in one: each with a limiter, a breaker and holds of its own, on one Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, cast

from redis.asyncio import Redis

from callmill.breaker import BreakerRules, BreakerStore
from callmill.config.credentials import ResolvedCredential
from callmill.config.profiles import ApiProfile
from callmill.jobs.traffic import TrafficClass
from callmill.jobs.wire import WireJob, WireOutcome
from callmill.limits import Limiter
from callmill.limits.rules import KeyRules, LimitRules
from callmill.workers.call import Call, Postponed
from callmill.workers.call_cost import CallCosts
from callmill.workers.hold_subjects import open_hold_stores
from callmill.workers.lane import Lane
from callmill.workers.request_builder import RequestBuilder
from callmill.workers.transports.port import Response

JOB = WireJob("GET", "/x")
_names = count()

Answer = Callable[[str], Awaitable[int]]
"""Return the status of a call that came with a secret."""


def credential(secret: str) -> ResolvedCredential:
    """Return a credential of one header."""
    return ResolvedCredential({"Authorization": secret}, {}, (secret,))


class Api:
    """Answers as the test tells it, and keeps the secrets that calls came with."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.calls: list[str] = []

    async def send(self, _method: str, _url: str, headers: dict[str, str], *_rest: object) -> Response:
        """Keep and answer."""
        secret = headers.get("Authorization", "")
        self.calls.append(secret)
        return Response(await self.answer(secret), {}, b"")

    async def warm_up(self, url: str) -> None:
        """Nothing to warm up."""

    async def aclose(self) -> None:
        """Nothing is open."""


class Batch:
    """Owns calls of one lane, and keeps what became of them."""

    def __init__(self, lane: Lane) -> None:
        self.traffic = TrafficClass(tenant="t")
        self.outcomes: list[WireOutcome] = []
        self.postponed: list[Postponed] = []
        self._lane = lane
        self._name = f"batch{next(_names)}"
        self._news = asyncio.Event()

    def submit(self, calls: int, job: WireJob = JOB) -> None:
        """Have the lane make so many calls."""
        owner = cast("Any", self)
        self._lane.add(owner, [Call(job, owner, n, n, f"{self._name}-{n}") for n in range(calls)])

    async def come_to(self, outcomes: int) -> None:
        """Wait until so many calls are over."""
        while len(self.outcomes) < outcomes:
            self._news.clear()
            await self._news.wait()

    @property
    def ok(self) -> int:
        """Calls that succeeded."""
        return sum(outcome.error_code is None for outcome in self.outcomes)

    def may_start(self, call: Call, now_s: float) -> bool:  # noqa: ARG002 - the port's signature
        """Want all."""
        return True

    def started(self, call: Call) -> None:
        """Note nothing."""

    def interrupted(self, call: Call) -> None:
        """Note nothing."""

    def refuse(self, call: Call, outcome: WireOutcome) -> None:
        """Keep it."""
        self.record(call, outcome)

    def record(self, call: Call, outcome: WireOutcome) -> None:  # noqa: ARG002 - the port's signature
        """Keep it."""
        self.outcomes.append(outcome)
        self._news.set()

    def postpone(self, call: Call, postponed: Postponed) -> None:
        """Give the call back when its time comes."""
        self.postponed.append(postponed)
        asyncio.get_running_loop().call_later(postponed.delay_s, self._lane.add_first, call)


@asynccontextmanager
async def open_lane(
    redis_url: str, api: Any, secrets: Sequence[str], *, worker: str, max_in_flight: int = 8, **fields: Any
) -> AsyncIterator[Lane]:
    """Open a lane as a process with these secrets does; with several, they are a pool: A, B and so on."""
    pool = [chr(ord("A") + n) for n in range(len(secrets))] if len(secrets) > 1 else []
    auth = [{"bearer": f"env:{name}"} for name in pool or "A"]
    profile = ApiProfile.model_validate({"name": "api", "base_url": "https://api.example.com", "auth": auth, **fields})
    credentials = [credential(secret) for secret in secrets]
    async with Redis.from_url(redis_url, socket_timeout=1) as connection:
        rules = LimitRules(profile.limit_specs, keys=tuple(KeyRules(name) for name in pool or ["default"]))
        limiter = Limiter(connection, "api", rules, worker=worker)
        await limiter.start()
        lane = Lane(
            profile,
            RequestBuilder(profile, credentials),
            api,
            limiter,
            BreakerStore(connection, "api", BreakerRules(), worker=worker),
            costs=CallCosts(profile, lambda: limiter.rules),
            max_in_flight=max_in_flight,
            open_holds=lambda: open_hold_stores(
                connection, profile, limiter.key_names, credentials, name="api", worker=worker
            ),
        )
        await lane.start()
        try:
            yield lane
        finally:
            await lane.aclose()
