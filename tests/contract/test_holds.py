"""The script of holds on a real Redis: who may call what never worked, when it is held, and what releases it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count

import pytest
from redis.asyncio import Redis

from callmill.errors import RedisUnavailableError
from callmill.holds import (
    HOST,
    UNBOUNDED,
    HoldReport,
    HoldRules,
    HoldState,
    HoldStore,
    HoldView,
    current_holds,
    fingerprint,
    open_stores,
    release_holds,
)
from callmill.holds.keys import Keys
from callmill.holds.store import CALLS_AT_ONCE, PROCESSES_AT_ONCE

KEY = "key:default"
RULES = {HOST: HoldRules(hard=3, all=3, first_ms=40, cap_ms=80), KEY: HoldRules(hard=8, all=16, streak=20, again_ms=50)}
UNPROVEN, PROVEN, HELD, SUSPECTED = HoldState
REFUSED = {"hard": 1, "cause": "401 Unauthorized", "remedy": "check CRM_TOKEN"}
PATIENCE_S = 10
_names = count()


class Fleet:
    """Workers that speak of one API's subjects."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.api = f"api{next(_names)}"

    async def tell(
        self, subject: str = KEY, *, worker: str = "a", mark: str = "s", begins: bool = False, **report: object
    ) -> HoldView:
        """Exchange as a worker with a secret of this fingerprint."""
        store = HoldStore(self.redis, self.api, subject, mark, RULES[subject], worker=worker)
        return await store.exchange(HoldReport(**report), begins=begins)

    async def held(self, subject: str = KEY, **options: object) -> HoldView:
        """Have the subject refused until it is held."""
        for _ in range(RULES[subject].hard):
            view = await self.tell(subject, **REFUSED, **options)
        assert view.state is HELD
        return view

    async def trial(self, subject: str = KEY, *, worker: str = "a") -> HoldView:
        """Ask as a worker until it may try."""
        async with asyncio.timeout(PATIENCE_S):
            while not (view := await self.tell(subject, worker=worker, wants=True)).grant:  # noqa: ASYNC110 - Redis tells nobody
                await asyncio.sleep(0.005)
        return view

    async def line(self) -> str:
        """Return what views show."""
        (holds,) = await current_holds(self.redis, [self.api])
        return holds[""].line if "" in holds else ""


Scene = Callable[[Fleet], Awaitable[None]]


@pytest.fixture
def play(redis_url) -> Callable[[Scene], None]:
    """Return what runs a scene with a fleet of its own."""

    @asynccontextmanager
    async def fleet() -> AsyncIterator[Fleet]:
        async with Redis.from_url(redis_url) as redis, asyncio.timeout(2 * PATIENCE_S):
            yield Fleet(redis)

    def run(scene: Scene) -> None:
        async def act() -> None:
            async with fleet() as made:
                await scene(made)

        asyncio.run(act())

    return run


def test_few_processes_call_what_never_worked_until_it_does(play):
    """Two calls in each of four processes; one success opens it for all, also for those that come later."""

    async def scene(fleet: Fleet) -> None:
        grants = [(await fleet.tell(worker=f"w{n}", wants=True)).grant for n in range(2 * PROCESSES_AT_ONCE)]
        assert grants == [CALLS_AT_ONCE] * PROCESSES_AT_ONCE + [0] * PROCESSES_AT_ONCE
        assert (await fleet.tell(worker="w0", wants=True)).grant == CALLS_AT_ONCE
        await fleet.tell(worker="w1", good=1)
        for worker in ("w7", "new"):
            view = await fleet.tell(worker=worker, wants=True)
            assert (view.state, view.grant) == (PROVEN, UNBOUNDED)

    play(scene)


def test_refusals_are_counted_over_all_workers(play):
    """Eight refusals without a success hold it, whoever met them; the line has cause and remedy."""

    async def scene(fleet: Fleet) -> None:
        views = [await fleet.tell(worker=f"w{n}", **REFUSED) for n in range(RULES[KEY].hard)]
        assert [view.state for view in views] == [UNPROVEN] * 7 + [HELD]
        assert views[-1].line == await fleet.line() == "8 x 401 Unauthorized: check CRM_TOKEN"
        assert views[-1].next_in_s is None
        assert (await fleet.tell(worker="other", wants=True)).grant == 0

    play(scene)


def test_forbidden_takes_more_and_stops_counting_once_people_released_it(play):
    """403 may be the job's fault: sixteen hold what never worked, and none does after a release by command."""

    async def scene(fleet: Fleet) -> None:
        forbidden = {"soft": 1, "cause": "403 Forbidden", "remedy": "check CRM_TOKEN"}
        states = [(await fleet.tell(**forbidden)).state for _ in range(RULES[KEY].all)]
        assert states == [UNPROVEN] * 15 + [HELD]
        assert [*await release_holds(fleet.redis, fleet.api)] == [KEY]
        assert not await fleet.line()
        assert {(await fleet.tell(**forbidden)).state for _ in range(3 * RULES[KEY].all)} == {UNPROVEN}
        await fleet.held()

    play(scene)


def test_mixed_answers(play):
    """Twenty answers of 4xx prove a credential, few do not, and not where refusals are among them."""

    async def scene(fleet: Fleet) -> None:
        assert (await fleet.tell(plain=19)).state is UNPROVEN
        assert (await fleet.tell(plain=1)).state is PROVEN
        assert (await fleet.tell(mark="t", plain=19, **REFUSED | {"hard": 5})).state is UNPROVEN
        assert (await fleet.tell(mark="t", plain=1)).state is UNPROVEN
        assert (await fleet.tell(mark="t", **REFUSED | {"hard": 3})).state is HELD

    play(scene)


def test_secrets_do_not_share_what_is_known(play):
    """A hold is of one secret: another one starts anew, the old one stays held, and views show the latest start's."""

    async def scene(fleet: Fleet) -> None:
        await fleet.tell(begins=True, mark="old")
        await fleet.held(mark="old")
        assert await fleet.line()
        assert (await fleet.tell(begins=True, mark="new", wants=True)).grant == CALLS_AT_ONCE
        assert not await fleet.line()
        assert (await fleet.tell(mark="old", wants=True)).state is HELD
        assert not await fleet.line()
        await fleet.tell(mark="new", good=1)
        assert (await fleet.tell(begins=True, mark="old")).state is HELD
        assert await fleet.line()

    play(scene)


def test_host_is_tried_again_by_one_at_a_time_and_less_and_less_often(play):
    """A held host gets one call at a time; a failure doubles the wait; an answer releases it for good."""

    async def scene(fleet: Fleet) -> None:
        fault = {"hard": 1, "cause": "crm.example.com does not resolve", "remedy": "check base_url"}
        for _ in range(RULES[HOST].hard):
            view = await fleet.tell(HOST, **fault)
        assert view.line == await fleet.line() == "crm.example.com does not resolve: check base_url"
        assert 0 < (view.next_in_s or 0) <= 0.04
        await fleet.trial(HOST)
        assert (await fleet.tell(HOST, worker="b", wants=True)).grant == 0
        assert (await fleet.tell(HOST, trying=True)).grant == 1
        view = await fleet.tell(HOST, tried=True, **fault)
        assert 0.04 < (view.next_in_s or 0) <= 0.08
        await fleet.trial(HOST, worker="b")
        assert (await fleet.tell(HOST, worker="b", tried=True, good=1)).state is PROVEN
        assert (await fleet.tell(HOST, **fault | {"hard": 50})).state is PROVEN
        assert not await fleet.line()

    play(scene)


def test_prober_that_is_gone_is_replaced(play, monkeypatch):
    """A process that was to try and says nothing more keeps the others from it for a lease only."""
    monkeypatch.setattr("callmill.holds.store.LEASE_MS", 100)

    async def scene(fleet: Fleet) -> None:
        await fleet.held(HOST)
        await fleet.trial(HOST)
        assert (await fleet.tell(HOST, worker="b", wants=True)).grant == 0
        await fleet.trial(HOST, worker="b")

    play(scene)


def test_worker_that_starts_has_a_held_credential_tried_once(play):
    """A start allows one call for all workers, 30 s after the last refusal; nothing else has it tried."""

    async def scene(fleet: Fleet) -> None:
        await fleet.tell(begins=True)
        await fleet.held()
        view = await fleet.tell(begins=True, wants=True)
        assert view.grant == 0
        assert 25 < (view.next_in_s or 0) <= 30
        await fleet.redis.hset(Keys(fleet.api).state(KEY, "s"), "tried", 0)
        await fleet.redis.hset(Keys(fleet.api).state(KEY, "s"), "next", 0)
        grants = [(await fleet.tell(worker=worker, begins=True, wants=True)).grant for worker in "abc"]
        assert grants == [1, 0, 0]
        view = await fleet.tell(tried=True, **REFUSED)
        assert (view.state, view.next_in_s, view.line) == (HELD, None, "9 x 401 Unauthorized: check CRM_TOKEN")

    play(scene)


def test_credential_that_worked_is_held_only_if_nobody_sees_it_work(play):
    """Twenty refusals in a row hold it after a while; a success elsewhere clears it, and so does a trial."""

    async def scene(fleet: Fleet) -> None:
        revoked = {"streak": 20, "cause": "401 Unauthorized", "remedy": "check CRM_TOKEN"}
        await fleet.tell(good=1)
        assert (await fleet.tell(streak=19)).state is PROVEN
        view = await fleet.tell(**revoked)
        assert (view.state, view.grant) == (SUSPECTED, UNBOUNDED)
        assert (await fleet.tell(worker="b")).state is SUSPECTED
        assert (await fleet.tell(worker="b", good=1)).state is PROVEN
        async with asyncio.timeout(PATIENCE_S):
            while (view := await fleet.tell(**revoked)).state is not HELD:  # noqa: ASYNC110 - Redis tells nobody
                await asyncio.sleep(0.1)
        assert view.line == "20 x 401 Unauthorized: check CRM_TOKEN"
        await fleet.trial(worker="b")
        assert (await fleet.tell(worker="b", tried=True, good=1)).state is PROVEN

    play(scene)


def test_streak_that_others_refuted_is_not_held_against_the_credential(play):
    """Who asked whether others see it work learns that they did, and what worked before is no answer."""

    async def scene(fleet: Fleet) -> None:
        refused = {"streak": 20, "cause": "401 Unauthorized", "remedy": "check CRM_TOKEN"}
        await fleet.tell(good=1)
        assert (await fleet.tell(**refused)).state is SUSPECTED
        assert (await fleet.tell(worker="b", good=1, good_age_s=1.0)).state is SUSPECTED
        assert (await fleet.tell(worker="b", good=1)).state is PROVEN
        assert (await fleet.tell(**refused, asked=True)).state is PROVEN
        assert (await fleet.tell(**refused)).state is SUSPECTED

    play(scene)


def test_clock_that_is_set_back_makes_no_suspicion_last(play):
    """A suspicion that seems to end in an hour ends when the longest does: then the credential is held."""

    async def scene(fleet: Fleet) -> None:
        revoked = {"streak": 20, "cause": "401 Unauthorized", "remedy": "check CRM_TOKEN"}
        await fleet.tell(good=1)
        assert (await fleet.tell(**revoked)).state is SUSPECTED
        await fleet.redis.hincrby(Keys(fleet.api).state(KEY, "s"), "suspected", 3_600_000)
        async with asyncio.timeout(PATIENCE_S):
            while (await fleet.tell(**revoked)).state is not HELD:  # noqa: ASYNC110 - Redis tells nobody
                await asyncio.sleep(0.1)

    play(scene)


def test_who_has_no_call_gives_back_what_was_granted(play):
    """A part of what never worked, and the trial of what is held, go to the next one that has a call."""

    async def scene(fleet: Fleet) -> None:
        for n in range(PROCESSES_AT_ONCE):
            await fleet.tell(worker=f"w{n}", wants=True)
        assert (await fleet.tell(worker="late", wants=True)).grant == 0
        await fleet.tell(worker="w0")
        assert (await fleet.tell(worker="late", wants=True)).grant == CALLS_AT_ONCE
        await fleet.held(HOST)
        await fleet.trial(HOST)
        view = await fleet.tell(HOST, worker="b", wants=True)
        assert view.grant == 0
        assert 0 < (view.next_in_s or 0) <= 5
        await fleet.tell(HOST)
        assert (await fleet.tell(HOST, worker="b", wants=True)).grant == 1

    play(scene)


def test_profile_without_a_credential_leaves_its_release_alone(play):
    """A worker whose profile lacks a credential of this name neither releases its hold nor forgets a release."""

    async def scene(fleet: Fleet) -> None:
        both = {"key:eu": (["eu"], RULES[HOST]), "key:us": (["us"], RULES[HOST])}

        async def opened(worker: str, *names: str) -> list[HoldStore]:
            stores = await open_stores(fleet.redis, fleet.api, {name: both[name] for name in names}, worker=worker)
            for store in stores:
                await store.exchange(HoldReport(), begins=True)
            return stores

        _, us = await opened("a", *both)
        await us.exchange(HoldReport(hard=3))
        await release_holds(fleet.redis, fleet.api)
        assert (await us.exchange(HoldReport())).state is UNPROVEN
        assert (await us.exchange(HoldReport(hard=3))).state is HELD
        await opened("b", "key:eu")
        assert (await us.exchange(HoldReport())).state is HELD

    play(scene)


def test_api_of_several_credentials_is_held_when_all_are(play):
    """One of two held credentials holds nothing more; both hold the API; one alone is released by its name."""

    async def scene(fleet: Fleet) -> None:
        keys = {"key:eu": (["eu"], RULES[HOST]), "key:us": (["us"], RULES[HOST])}
        stores = await open_stores(fleet.redis, fleet.api, keys, worker="a")
        for number, store in enumerate(stores):
            assert not await fleet.line()
            await store.exchange(HoldReport(), begins=True)
            await stores[1 - number].exchange(HoldReport(), begins=True)
            report = HoldReport(hard=3, cause="401 Unauthorized", remedy=f"check {store.subject}")
            assert (await store.exchange(report)).state is HELD
        assert await fleet.line() == "3 x 401 Unauthorized: check key:eu; 3 x 401 Unauthorized: check key:us"
        assert [*await release_holds(fleet.redis, fleet.api, "us")] == ["key:us"]
        assert not await fleet.line()

    play(scene)


def test_secret_is_nowhere_in_redis(play):
    """What is stored of a secret is a salted fingerprint of eight characters."""

    async def scene(fleet: Fleet) -> None:
        subjects = {KEY: (["Bearer hunter2-hunter2"], RULES[KEY])}
        (store,) = await open_stores(fleet.redis, fleet.api, subjects, worker="a")
        await store.exchange(HoldReport(wants=True), begins=True)
        names = [name async for name in fleet.redis.scan_iter(f"callmill:holds:{{{fleet.api}}}*")]
        assert len(names) == 2
        dump = b" ".join([*names, *[await fleet.redis.dump(name) for name in names]])
        assert b"hunter2" not in dump
        shared = await fleet.redis.hgetall(Keys(fleet.api).shared)
        assert len(shared[b"fp:" + KEY.encode()]) == 8
        assert fingerprint(b"1", "a") != fingerprint(b"2", "a")
        assert fingerprint(b"1", "a", "bc") != fingerprint(b"1", "ab", "c")

    play(scene)


def test_redis_away():
    """Without Redis an exchange says so, and nothing is decided."""

    async def scene() -> None:
        async with Redis.from_url("redis://127.0.0.1:1") as redis:
            store = HoldStore(redis, "api", KEY, "s", RULES[KEY], worker="a")
            with pytest.raises(RedisUnavailableError):
                await store.exchange(HoldReport())

    asyncio.run(scene())
