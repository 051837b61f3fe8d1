"""A lane on a real limiter: what becomes of calls that wait for a slot when their owner gives them back."""

from __future__ import annotations

import asyncio

from limits_kit import rules
from redis.asyncio import Redis

from callmill.breaker import BreakerRules, BreakerStore
from callmill.config.profiles import ApiProfile
from callmill.jobs.wire import WireJob
from callmill.limits import Limiter
from callmill.workers.call import Call
from callmill.workers.call_cost import CallCosts
from callmill.workers.lane import Lane
from callmill.workers.request_builder import RequestBuilder
from callmill.workers.single_call import SingleCall
from callmill.workers.transports.port import Response


class CountingTransport:
    """Answers at once and counts."""

    def __init__(self) -> None:
        self.sent = 0

    async def send(self, *_request: object) -> Response:
        """Count and answer."""
        self.sent += 1
        return Response(200, {}, b"")

    async def warm_up(self, url: str) -> None:
        """Nothing to warm up."""

    async def aclose(self) -> None:
        """Nothing is open."""


def test_calls_given_back_take_no_slot(redis_url):
    """Calls that waited for a slot when their owner gave them back take none: the next slot is the next owner's."""

    async def scenario() -> None:
        profile = ApiProfile(name="api", base_url="https://api.example.com", limits=["60/minute"])
        async with Redis.from_url(redis_url, socket_timeout=1) as connection:
            limiter = Limiter(connection, "api", rules("60/minute"), worker="w")
            await limiter.start()
            transport = CountingTransport()
            costs, requests = CallCosts(profile, lambda: limiter.rules), RequestBuilder(profile, [{}])
            store = BreakerStore(connection, "api", BreakerRules(), worker="w")
            lane = Lane(profile, requests, transport, limiter, store, costs=costs, max_in_flight=50)
            job = WireJob("GET", "/x")
            leaving, staying = SingleCall(job, lane, "leaving"), SingleCall(job, lane, "staying")
            try:
                lane.add(leaving, (Call(job, leaving, number, number, "leaving") for number in range(30)))
                await asyncio.sleep(0)
                assert limiter.status().waiting == 30
                leaving.outcome.cancel()
                lane.forget(leaving)
                staying.begin()
                async with asyncio.timeout(10):
                    await staying.outcome
                assert (transport.sent, limiter.status().fired, lane.waiting) == (1, 1, 0)
            finally:
                await lane.aclose()

    asyncio.run(scenario())
