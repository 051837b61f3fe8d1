"""A lane on a real limiter: who gets its slots, and what becomes of calls that are given back."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, cast

from limits_kit import rules
from msgspec.structs import replace
from redis.asyncio import Redis

from callmill.breaker import BreakerRules, BreakerStore
from callmill.config.credentials import ResolvedCredential
from callmill.config.profiles import ApiProfile
from callmill.jobs.traffic import TrafficClass
from callmill.jobs.wire import WireJob, WireOutcome
from callmill.limits import Limiter
from callmill.workers.call import Call, Postponed
from callmill.workers.call_cost import CallCosts
from callmill.workers.hold_subjects import open_hold_stores
from callmill.workers.lane import Lane
from callmill.workers.request_builder import RequestBuilder
from callmill.workers.single_call import CallNotDoneError, SingleCall
from callmill.workers.transports.answer_room import AnswerRoom, AnswersOfApi
from callmill.workers.transports.port import Response

TOOK_S = 0.01


class CountingTransport:
    """Answers within 10 ms and counts."""

    def __init__(self) -> None:
        self.sent = 0
        self.status = 200

    async def send(self, *_request: object) -> Response:
        """Count and answer."""
        self.sent += 1
        await asyncio.sleep(TOOK_S)
        return Response(self.status, {}, b"")

    async def warm_up(self, url: str) -> None:
        """Nothing to warm up."""

    async def aclose(self) -> None:
        """Nothing is open."""


Site = tuple[Lane, Limiter, CountingTransport]
JOB = WireJob("GET", "/x")


class Tenant:
    """Owns many calls, and counts those that are over."""

    def __init__(self, name: str, lane: Lane) -> None:
        self.traffic = TrafficClass(tenant=name)
        self._lane = lane
        self.done = 0
        self._one_more = asyncio.Event()

    async def come_to(self, calls: int) -> None:
        """Wait until so many are over."""
        while self.done < calls:
            self._one_more.clear()
            await self._one_more.wait()

    def may_start(self, call: Call, now_s: float) -> bool:  # noqa: ARG002 - the port's signature
        """Want all."""
        return True

    def started(self, call: Call) -> None:
        """Note nothing."""

    def interrupted(self, call: Call) -> None:
        """Note nothing."""

    def record(self, call: Call, outcome: WireOutcome) -> None:  # noqa: ARG002 - the port's signature
        """Count."""
        self.done += 1
        self._one_more.set()

    def postpone(self, call: Call, postponed: Postponed) -> None:
        """Give a call back that came too late for its slot."""
        assert not postponed.made
        self._lane.add_first(call)

    def calls(self, count: int) -> Iterator[Call]:
        """Make new calls."""
        return (Call(JOB, cast("Any", self), number, number, "") for number in range(count))


@asynccontextmanager
async def lane_of(
    redis_url: str,
    limit: str,
    max_in_flight: int,
    transport: CountingTransport | None = None,
    answers: AnswersOfApi | None = None,
    **tenants: float,
) -> AsyncIterator[Site]:
    """Open a lane of an API with this limit."""
    profile = ApiProfile(name="api", base_url="https://api.example.com", limits=[limit], tenants=tenants)
    async with Redis.from_url(redis_url, socket_timeout=1) as connection:
        limiter = Limiter(connection, "api", replace(rules(limit), tenant_weights=tenants), worker="w")
        await limiter.start()
        transport = transport or CountingTransport()
        costs, requests = CallCosts(profile, lambda: limiter.rules), RequestBuilder(profile)
        store = BreakerStore(connection, "api", BreakerRules(), worker="w")
        lane = Lane(
            profile,
            requests,
            transport,
            limiter,
            store,
            costs=costs,
            max_in_flight=max_in_flight,
            answers=answers,
            open_holds=lambda: open_hold_stores(
                connection, profile, limiter.key_names, [ResolvedCredential()], name=profile.name, worker="w"
            ),
        )
        try:
            async with asyncio.timeout(20):
                yield lane, limiter, transport
        finally:
            await lane.aclose()


def test_calls_given_back_take_no_slot(redis_url):
    """Calls that waited for a slot when their owner gave them back take none: the next slot is the next owner's."""

    async def scenario() -> None:
        async with lane_of(redis_url, "60/minute", 50) as (lane, limiter, transport):
            leaving, staying = SingleCall(JOB, lane, "leaving"), SingleCall(JOB, lane, "staying")
            lane.add(leaving, [Call(JOB, leaving, number, number, "leaving") for number in range(30)])
            await asyncio.sleep(0)
            assert limiter.status().waiting == 30
            leaving.outcome.cancel()
            lane.forget(leaving)
            staying.begin()
            await staying.outcome
            assert (transport.sent, limiter.status().fired, lane.waiting) == (1, 1, 0)

    asyncio.run(scenario())


def test_call_that_comes_too_late_for_its_slot_waits_for_another_one(redis_url, monkeypatch):
    """A call whose slot is gone at the moment in which it would start is made in the next one, and counts once."""

    async def scenario() -> None:
        async with lane_of(redis_url, "100/second", 50) as (lane, limiter, transport):
            late = iter([False])
            monkeypatch.setattr(limiter, "accept", lambda _slot: next(late, True))
            call = SingleCall(JOB, lane, "late")
            call.begin()
            assert (await call.outcome).attempts == 1
            assert (transport.sent, lane.tally.calls, lane.in_flight) == (1, 1, 0)

    asyncio.run(scenario())


def test_call_whose_lease_ends_as_it_starts_is_not_made(redis_url):
    """A process that stood still between choosing a call and making it does not send what may be another worker's."""

    class Leased(Tenant):
        holds = True

        def may_start(self, call: Call, now_s: float) -> bool:  # noqa: ARG002 - the port's signature
            """Ask the lease."""
            return self.holds

        def postpone(self, call: Call, postponed: Postponed) -> None:
            """Take the call back."""
            assert not postponed.made
            self.record(call, cast("Any", None))

    async def scenario() -> None:
        async with lane_of(redis_url, "none", 50) as (lane, limiter, transport):
            owner = Leased("a", lane)
            lane.add(owner, list(owner.calls(2)))
            assert lane.in_flight == 2
            owner.holds = False
            await owner.come_to(2)
            assert (transport.sent, lane.tally.calls, lane.in_flight, limiter.status().in_flight) == (0, 0, 0, 0)

    asyncio.run(scenario())


def test_call_whose_deadline_passes_as_it_starts_is_not_made(redis_url):
    """A process that stood still until a call was too late does not make it, and says so."""

    async def scenario() -> None:
        async with lane_of(redis_url, "none", 50) as (lane, _, transport):
            call = SingleCall(JOB, lane, "late")
            call.begin()
            assert lane.in_flight == 1
            call._call.deadline_s = asyncio.get_running_loop().time() - 1
            assert (await call.outcome).error_code == "deadline"
            assert transport.sent == 0

    asyncio.run(scenario())


def test_call_that_is_cut_off_as_it_starts_is_known_to_be_over(redis_url):
    """A worker that stops in the very moment in which calls start leaves none of them behind as under way."""

    async def scenario() -> None:
        async with lane_of(redis_url, "none", 50) as (lane, _, _):
            calls = [SingleCall(JOB, lane, str(number)) for number in range(3)]
            for call in calls:
                call.begin()
            assert lane.in_flight == 3
            await lane.cancel()
            ended = await asyncio.gather(*(call.outcome for call in calls), return_exceptions=True)
            assert all(isinstance(end, CallNotDoneError) for end in ended)
            assert lane.in_flight == 0

    asyncio.run(scenario())


def test_plain_call_of_a_held_api_ends_with_the_reason(redis_url, monkeypatch):
    """A call of the plain task does not wait for an API that is held: its caller gets cause and remedy."""
    monkeypatch.setattr("callmill.workers.single_call.HELD_PATIENCE_S", 0.1)

    async def scenario() -> None:
        async with lane_of(redis_url, "1000/second", 50) as (lane, _, transport):
            await lane.start()
            transport.status = 401
            calls = [SingleCall(JOB, lane, str(number)) for number in range(60)]
            for call in calls:
                call.begin()
            ended = await asyncio.gather(*(call.outcome for call in calls), return_exceptions=True)
            told = [str(end) for end in ended if isinstance(end, CallNotDoneError)]
            reason = re.compile(r"api is held: \d+ x 401 Unauthorized: api has no auth in its profile")
            assert all(map(reason.fullmatch, told)), set(told)
            assert len(told) >= 40
            assert transport.sent <= 20

    asyncio.run(scenario())


def test_class_gets_its_share_of_few_connections(redis_url):
    """With few calls in flight at a time, a class that comes beside a busy one gets its part, not one slot a turn."""

    async def scenario() -> int:
        async with lane_of(redis_url, "200/second", 8, big=3) as (lane, _, _):
            big, small = Tenant("big", lane), Tenant("small", lane)
            lane.add(cast("Any", big), list(big.calls(2000)))
            await big.come_to(60)
            lane.add(cast("Any", small), list(small.calls(80)))
            await small.come_to(20)  # what was granted to the other before is over
            before = big.done
            await small.come_to(70)
            return big.done - before

    assert 2 * 50 <= asyncio.run(scenario()) <= 4 * 50  # by the weights: 3


def test_no_call_starts_while_an_answer_waits_for_room(redis_url):
    """An API whose answer there is no room for starts no further call, and goes on when that answer is read."""

    class LargeAnswers(CountingTransport):
        def __init__(self, answers: AnswersOfApi) -> None:
            super().__init__()
            self.answers, self.answering = answers, asyncio.Event()

        async def send(self, *request: object) -> Response:
            reading = self.answers.reading()
            self.answering.set()
            await reading.room_for(1)
            reading.end()
            return await super().send(*request)

    async def scenario() -> None:
        answers = AnswersOfApi(AnswerRoom(20))
        oldest, transport = answers.reading(), LargeAnswers(answers)
        oldest.grow(20)
        async with lane_of(redis_url, "none", 50, transport, answers) as (lane, _, _):
            first, second = SingleCall(JOB, lane, "first"), SingleCall(JOB, lane, "second")
            first.begin()
            await transport.answering.wait()
            second.begin()
            await asyncio.wait([second.outcome], timeout=10 * TOOK_S)
            assert (lane.in_flight, lane.waiting, lane.room()) == (1, 1, 0)
            oldest.end()
            await asyncio.gather(first.outcome, second.outcome)
            assert (transport.sent, lane.room()) == (2, 50)

    asyncio.run(scenario())
