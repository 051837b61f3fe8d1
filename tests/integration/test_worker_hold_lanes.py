"""Lanes of several processes that share credentials, some of which are held: who calls, how often, and until when."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from itertools import pairwise

import pytest
from lanes_kit import JOB, Api, Batch, open_lane
from redis.asyncio import Redis

from callmill.holds import current_holds, release_holds
from callmill.holds.keys import Keys
from callmill.jobs.wire import WireJob
from callmill.limits.control import LimitControl
from callmill.workers.call import Call
from callmill.workers.single_call import CallNotDoneError, SingleCall
from callmill.workers.transports.port import FaultKind, Response, TransportFault
from callmill.workers.verdict import Failed

PATIENCE_S = 20
MOST_CALLS = 50


async def until(true, what: str) -> None:
    """Wait until something is so."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not true():  # noqa: ASYNC110 - several processes' matter, of which none tells
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"not within {PATIENCE_S} s: {what}")


async def long_ago(redis: Redis) -> None:
    """Let the last refusals lie so far back that a start has what is held tried at once."""
    for name in await redis.keys("callmill:holds:*key:*"):
        await redis.hset(name, "tried", 0)


async def until_used(batch: Batch, api: Api, secret: str) -> None:
    """Make calls until enough of them came with a secret."""
    before = api.calls.count(secret)
    async with asyncio.timeout(PATIENCE_S):
        while api.calls.count(secret) < before + 10:
            batch.submit(50)
            await batch.come_to(len(batch.outcomes) + 50)


async def only_good(secret: str) -> int:
    """Answer 401 to any secret but good ones."""
    await asyncio.sleep(0.005)
    return 200 if "good" in secret else 401


@pytest.mark.parametrize("limits", [[], ["500/second"]], ids=["unpaced", "paced"])
def test_secret_of_a_pool_that_was_changed_costs_the_others_nothing(redis_url, limits):
    """Workers with the old secret leave it alone, also while those with the new one use it, and after a restart."""

    async def scene() -> None:
        api = Api(only_good)
        async with asyncio.timeout(4 * PATIENCE_S), AsyncExitStack() as stack:

            async def opened(worker: str, *secrets: str):
                lane = await stack.enter_async_context(open_lane(redis_url, api, secrets, worker=worker, limits=limits))
                return lane, Batch(lane)

            old, old_batch = await opened("old", "good", "bad")
            old_batch.submit(100)
            await old_batch.come_to(100)
            await until(lambda: old._holds.holds(1), "held")
            refused = api.calls.count("bad")
            assert 3 <= refused <= MOST_CALLS / 2
            _, new_batch = await opened("new", "good", "good, and new")
            await until_used(new_batch, api, "good, and new")
            old_batch.submit(200)
            await old_batch.come_to(300)
            assert api.calls.count("bad") == refused
            _, again_batch = await opened("again", "good", "bad")
            for batch in (old_batch, again_batch, new_batch):
                batch.outcomes.clear()
                batch.submit(100)
            await asyncio.gather(*(batch.come_to(100) for batch in (old_batch, again_batch, new_batch)))
            assert old_batch.ok == again_batch.ok == new_batch.ok == 100
            assert api.calls.count("bad") <= refused + 1  # one when a worker starts with it
            await until_used(new_batch, api, "good, and new")

    asyncio.run(scene())


def test_job_that_is_forbidden_does_not_go_round_among_keys_that_are_held(redis_url):
    """With one key of a pool held, a job that the other is refused fails after one attempt."""

    async def answer(secret: str) -> int:
        return 403 if api.forbids and secret == "good" else await only_good(secret)

    async def scene() -> None:
        async with open_lane(redis_url, api, ["good", "bad"], worker="w") as lane:
            batch = Batch(lane)
            batch.submit(50)
            await batch.come_to(50)
            await until(lambda: lane._holds.holds(1), "held")
            api.forbids = True
            api.calls.clear()
            batch.submit(1)
            await batch.come_to(51)
            assert (batch.outcomes[-1].status, api.calls) == (403, ["good"])

    api = Api(answer)
    api.forbids = False
    asyncio.run(scene())


def test_pool_that_is_held_is_tried_by_a_worker_that_starts(redis_url):
    """With every key held and the cause put right at the provider, a restart is all it takes."""

    async def answer(_secret: str) -> int:
        await asyncio.sleep(0.005)
        return api.status

    async def scene() -> None:
        async with Redis.from_url(redis_url) as redis:
            async with open_lane(redis_url, api, ["one", "two"], worker="a") as lane:
                Batch(lane).submit(30)
                await until(lambda: lane.held, "held")
                calls = len(api.calls)
            assert calls <= MOST_CALLS
            await long_ago(redis)
            async with open_lane(redis_url, api, ["one", "two"], worker="b") as lane:
                Batch(lane).submit(30)
                await until(lambda: len(api.calls) >= calls + 2, "tried")
                await until(lambda: not lane.in_flight, "answered")
                await until(lambda: all(key.view.next_in_s is None for key in lane._holds._keys), "held again")
                assert len(api.calls) == calls + 2
            (holds,) = await current_holds(redis, ["api"])
            assert holds[""].next_in_s is None  # so `callmill run` ends, and says why
            await long_ago(redis)
            api.status = 200
            async with open_lane(redis_url, api, ["one", "two"], worker="c") as lane:
                batch = Batch(lane)
                batch.submit(30)
                async with asyncio.timeout(PATIENCE_S):
                    await batch.come_to(30)
                assert batch.ok == 30
                await until(lambda: not any(map(lane._holds.holds, range(2))), "both keys work")

    api = Api(answer)
    api.status = 402
    asyncio.run(scene())


def test_holds_of_two_secrets_are_released_together(redis_url):
    """A release by command is for every machine, also for one whose secret is not the one that views show."""

    async def scene() -> None:
        api = Api(only_good)
        async with Redis.from_url(redis_url) as redis, open_lane(redis_url, api, ["bad"], worker="a") as lane:
            Batch(lane).submit(60)
            await until(lambda: lane.held, "held")
            async with open_lane(redis_url, api, ["good"], worker="b"):
                calls = len(api.calls)
                await release_holds(redis, "api")
                await until(lambda: len(api.calls) > calls, "tried again")

    asyncio.run(scene())


def test_release_of_what_is_not_held_leaves_no_mark(redis_url):
    """A pause of people's is ended by the same command: what works, or was never tried, is judged as before."""

    async def scene() -> None:
        api = Api(only_good)
        async with Redis.from_url(redis_url) as redis:
            async with open_lane(redis_url, api, ["bad"], worker="a") as lane:
                await release_holds(redis, "api")
                Batch(lane).submit(60)
                await until(lambda: lane.held, "held")
            (state,) = [name for name in await redis.keys("*key:default:*") if name != Keys("api").shared.encode()]
            assert await redis.hget(state, "vouched") == b"0"

    asyncio.run(scene())


def test_wrong_key_of_a_slow_api_costs_no_more_calls(redis_url):
    """Before the first answer each of four processes has a few calls in flight, however long it takes."""

    async def answer(_secret: str) -> int:
        await slow.wait()
        return 401

    async def scene() -> None:
        async with asyncio.timeout(4 * PATIENCE_S), AsyncExitStack() as stack:
            lanes = [
                await stack.enter_async_context(open_lane(redis_url, api, ["bad"], worker=f"w{n}", max_in_flight=64))
                for n in range(6)
            ]
            for lane in lanes:
                Batch(lane).submit(40)
            waited: list[int] = []
            while len(waited) < 4 or any(a != b for a, b in pairwise(waited[-4:])):  # until no more calls begin
                await asyncio.sleep(0.6)
                waited.append(len(api.calls))
            slow.set()
            await until(lambda: lanes[0].held, "held")
            await until(lambda: not any(lane.in_flight for lane in lanes), "answered")
            assert len(api.calls) <= MOST_CALLS

    slow = asyncio.Event()
    api = Api(answer)
    asyncio.run(scene())


def test_no_job_fails_of_a_host_with_a_forbidden_address(redis_url):
    """A host that never answered and has a private address is held, and all its jobs wait as those of any other do."""

    class Forbidden(Api):
        async def send(self, *_request: object) -> Response:
            self.calls.append("")
            raise TransportFault(FaultKind.FORBIDDEN_ADDRESS, "10.0.0.1 is private", sent=False)

    async def scene() -> None:
        api = Forbidden(only_good)
        async with open_lane(redis_url, api, ["good"], worker="w") as lane:
            batch = Batch(lane)
            batch.submit(30)
            await until(lambda: lane.held and not lane.in_flight, "held")
            assert "has a private address" in lane.held
            assert not batch.outcomes
            assert len(api.calls) <= 8

    asyncio.run(scene())


def test_call_that_may_have_been_executed_is_not_made_again_by_a_hold(redis_url):
    """A POST whose connection failed after it was sent ends with the reason, also when its host is held by then."""

    class Broken(Api):
        async def send(self, *_request: object) -> Response:
            self.calls.append("")
            raise TransportFault(FaultKind.TLS, "certificate required", sent=True)

    async def scene() -> None:
        api = Broken(only_good)
        async with open_lane(redis_url, api, ["good"], worker="w") as lane:
            batch = Batch(lane)
            batch.submit(30, WireJob("POST", "/x"))
            await until(lambda: lane.held and not lane.in_flight, "held")
            before = len(api.calls)
            await until(lambda: len(api.calls) > before and not lane.in_flight, "tried again with another call")
            assert len(batch.outcomes) == len(api.calls)
            assert all("may have executed" in (outcome.error_message or "") for outcome in batch.outcomes)
            assert not batch.postponed

    asyncio.run(scene())


def test_old_refusals_hold_nothing_later(redis_url, monkeypatch):
    """Twenty jobs that were refused at the end of one batch say nothing of the next one, long after."""
    monkeypatch.setattr("callmill.workers.subject.STREAK_LASTS_S", 0.2)

    async def answer(_secret: str) -> int:
        return api.status

    async def scene() -> None:
        async with open_lane(redis_url, api, ["one"], worker="w", max_in_flight=1) as lane:
            batch = Batch(lane)
            batch.submit(1)
            await batch.come_to(1)
            await until(lambda: not lane._holds.watching, "works")
            api.status = 401
            batch.submit(20)
            await batch.come_to(21)
            await until(lambda: lane._holds._rests, "at rest")
            await asyncio.sleep(0.3)
            api.status = 200
            batch.submit(20)
            async with asyncio.timeout(2):
                await batch.come_to(41)
            assert batch.ok == 21
            assert not lane.held

    api = Api(answer)
    api.status = 200
    asyncio.run(scene())


@pytest.mark.parametrize(("status", "held"), [(404, False), (429, True), (503, True)])
def test_answers_between_refusals(redis_url, status, held):
    """What is answered by those who know the caller ends a row of refusals; a gateway's word does not."""

    async def scene() -> None:
        async with open_lane(redis_url, Api(only_good), ["good"], worker="w") as lane:
            batch = Batch(lane)
            batch.submit(1)
            await batch.come_to(1)
            gate = lane._holds
            await until(lambda: not gate.watching, "works")
            for number in range(19):
                call = Call(JOB, batch, number, number, f"{number}")
                gate.judged(call, 0, Failed("http_401", ""), Response(401, {}, b""), None)
            gate.judged(call, 0, Failed(f"http_{status}", ""), Response(status, {}, b""), None)
            assert gate._keys[0].streak == (19 if held else 0)

    asyncio.run(scene())


def test_plain_calls_that_are_over_leave_nothing_behind(redis_url, monkeypatch):
    """While an API is held, calls that end with the reason, by their deadline or by their caller leave the queue."""
    monkeypatch.setattr("callmill.workers.single_call.HELD_PATIENCE_S", 0.05)

    async def scene() -> None:
        async with open_lane(redis_url, Api(only_good), ["bad"], worker="w") as lane:
            batch = Batch(lane)
            batch.submit(12)
            await until(lambda: lane.held and not lane.in_flight, "held")
            await until(lambda: not lane.waiting or len(batch.outcomes) + lane.waiting == 12, "put back")
            before = lane.waiting
            ends = [SingleCall(JOB, lane, f"{n}") for n in range(3)]
            ends[0].begin()
            ends[1].begin(deadline_in_s=0.01)
            monkeypatch.setattr("callmill.workers.single_call.HELD_PATIENCE_S", 60)
            ends[2].begin()
            assert lane.waiting == before + 3
            with pytest.raises(CallNotDoneError, match="api is held"):
                await ends[0].outcome
            assert (await ends[1].outcome).error_code == "deadline"
            ends[2].outcome.cancel()
            await asyncio.sleep(0)
            assert lane.waiting == before

    asyncio.run(scene())


def test_pause_that_people_made_of_a_credential_outlives_its_change(redis_url):
    """A secret that is changed ends its hold and no pause: that is for whoever made it."""

    async def scene() -> None:
        api = Api(only_good)
        async with Redis.from_url(redis_url) as redis:
            async with open_lane(redis_url, api, ["good", "bad"], worker="a") as lane:
                batch = Batch(lane)
                batch.submit(50)
                await batch.come_to(50)
                await until(lambda: lane._holds.holds(1), "held")
            control = LimitControl(redis, "api")
            assert not (await control.current()).keys
            await control.pause(None, "rotating", by="ada", key="B")
            async with open_lane(redis_url, api, ["good", "good, and new"], worker="b") as lane:
                batch = Batch(lane)
                batch.submit(50)
                await batch.come_to(50)
                assert "good, and new" not in api.calls
                await control.resume(by="ada", key="B")
                await until_used(batch, api, "good, and new")

    asyncio.run(scene())
