"""Lanes whose API refuses some calls for its limits: who goes next, what counts, and when it ends."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from lanes_kit import JOB, Batch, open_lane

from callmill.jobs.wire import WireJob
from callmill.workers.call import Call, Postponed
from callmill.workers.single_call import SingleCall
from callmill.workers.transports.port import Response

PATIENCE_S = 20


class PickyApi:
    """Refuses some paths so often, and keeps in which order calls came."""

    def __init__(self, **refusals: int) -> None:
        self.paths: list[str] = []
        self._left = {f"/{name}": times for name, times in refusals.items()}

    async def send(self, _method: str, url: str, *_rest: object) -> Response:
        """Keep and answer."""
        path = url.removeprefix("https://api.example.com")
        self.paths.append(path)
        left = self._left[path] = self._left.get(path, 0) - 1
        return Response(200 if left < 0 else 429, {}, b"" if left < 0 else b"slow down")

    async def warm_up(self, url: str) -> None:
        """Nothing to warm up."""

    async def aclose(self) -> None:
        """Nothing is open."""


class Rows(Batch):
    """Owns one call of each name, and has those that are refused stand in line again at once."""

    def add(self, *names: str) -> None:
        """Have the lane make the calls."""
        owner = cast("Any", self)
        self._lane.add(owner, [Call(WireJob("GET", f"/{name}"), owner, 0, 0, name) for name in names])

    def postpone(self, call: Call, postponed: Postponed) -> None:
        """Give the call back."""
        assert (postponed.throttled or not postponed.made, postponed.delay_s) == (True, 0)
        self._lane.add_first(call)


def run(scene: Any) -> None:
    """Run a scene, for so long at most."""

    async def main() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await scene()

    asyncio.run(main())


@pytest.mark.parametrize("limit", ["none", "1000/second"])
def test_refusals_are_spread_over_the_calls_that_wait(redis_url, limit):
    """A call refused for the first time goes before the others of its class; one refused again goes behind them."""

    async def scene() -> None:
        api = PickyApi(a=2, b=1)
        async with open_lane(redis_url, api, ["x"], worker="w", max_in_flight=1, limits=[limit]) as lane:
            rows = Rows(lane)
            rows.add("a", "b", "c", "d")
            await rows.come_to(4)
            assert api.paths == ["/a", "/a", "/b", "/b", "/c", "/d", "/a"]
            assert [(outcome.error_code, outcome.attempts) for outcome in rows.outcomes] == [(None, 1)] * 4

    run(scene)


def test_a_call_that_is_always_refused_ends_and_the_others_succeed(redis_url):
    """The call fails with its last answer after the refusals allowed; the lane counts each of them, and goes on."""

    async def scene() -> None:
        api = PickyApi(a=10**6)
        profile = {"limits": ["1000/second"], "throttle": {"max_refusals": 3}}
        async with open_lane(redis_url, api, ["x"], worker="w", max_in_flight=1, **profile) as lane:
            rows = Rows(lane)
            rows.add("a", "b", "c")
            await rows.come_to(3)
            assert api.paths == ["/a", "/a", "/b", "/c", "/a"]
            *others, refused = rows.outcomes
            assert [outcome.error_code for outcome in others] == [None, None]
            assert (refused.error_code, refused.status, refused.body) == ("throttled", 429, b"slow down")
            assert refused.attempts == 1
            counts = lane.tally.take()
            assert (counts["throttled"], counts["r:429"], counts["retries"]) == (3, 3, 0)

    run(scene)


def test_a_plain_call_that_is_always_refused_ends(redis_url):
    """A call of the plain task is bounded as those of batches are."""

    async def scene() -> None:
        api = PickyApi(x=10**6)
        profile = {"limits": ["1000/second"], "throttle": {"max_refusals": 2}}
        async with open_lane(redis_url, api, ["x"], worker="w", **profile) as lane:
            call = SingleCall(JOB, lane, "plain")
            call.begin()
            outcome = await call.outcome
            assert (outcome.error_code, outcome.status, api.paths) == ("throttled", 429, ["/x", "/x"])

    run(scene)


@pytest.mark.parametrize("limits", [["none"], ["1000/second"], []])
def test_calls_that_fail_for_good_end_a_row_of_refusals_too(redis_url, limits):
    """After a refusal, an API that has nothing for any call, and says so, gets many calls at once again."""

    class EmptyApi(PickyApi):
        now = most = 0

        async def send(self, *request: Any) -> Response:
            answer = await super().send(*request)
            if answer.status == 429:
                return answer
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0.02)
            self.now -= 1
            return Response(404, {}, b"")

    async def scene() -> None:
        api = EmptyApi(first=1)
        async with open_lane(redis_url, api, ["good"], worker="w", limits=limits) as lane:
            first, rest = Rows(lane), Rows(lane)
            first.add("first")
            await first.come_to(1)
            rest.submit(100)
            await rest.come_to(100)
            assert api.most > 1

    run(scene)
