"""The breaker's script on a real Redis: when it opens, who probes, when it closes, and how many retries may go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from callmill.breaker import BreakerRules, BreakerState, BreakerStore, BreakerView, Evidence, Report
from callmill.breaker.keys import Keys
from callmill.breaker.store import RETRIES_AT_LEAST, RETRIES_OF_OVERLOADED
from callmill.errors import RedisUnavailableError

RULES = BreakerRules(probe_s=0.05, cap_s=0.4, window_s=10)
CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN
WAITING = Report(would_probe=True)
PATIENCE_S = 10
_names = count()


class Fleet:
    """Workers that speak with one breaker, each with the epoch that it knows."""

    def __init__(self, redis: Redis, rules: BreakerRules, lease_s: float) -> None:
        self.redis = redis
        self.api = f"api{next(_names)}"
        self._rules, self._lease_s = rules, lease_s
        self._epochs: dict[str, int] = {}

    async def tell(self, worker: str = "a", **report: object) -> BreakerView:
        """Exchange as a worker."""
        store = BreakerStore(self.redis, self.api, self._rules, worker=worker, lease_s=self._lease_s)
        view = await store.exchange(Report(**report), self._epochs.get(worker, 0))
        self._epochs[worker] = view.epoch
        return view

    async def open(self) -> BreakerView:
        """Open the breaker."""
        view = await self.tell(bad=20, streak=20, why="connect: refused")
        assert view.state is OPEN
        return view

    async def probe(self, worker: str = "a") -> BreakerView:
        """Ask as a worker until it may probe."""
        async with asyncio.timeout(PATIENCE_S):
            while not (view := await self.tell(worker, would_probe=True)).probes:  # noqa: ASYNC110 - Redis tells nobody
                await asyncio.sleep(0.005)
        return view


@pytest.fixture
def play(redis_url) -> Callable[..., None]:
    """Return what runs a scene with a fleet of its own."""

    def run(scene: Callable[[Fleet], Awaitable[None]], rules: BreakerRules = RULES, *, lease_s: float = 60) -> None:
        async def main() -> None:
            async with _connection(redis_url) as redis:
                await scene(Fleet(redis, rules, lease_s))

        asyncio.run(main())

    return run


@asynccontextmanager
async def _connection(url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(url, socket_timeout=2) as redis:
        yield redis


def test_failures_of_all_workers_open_it_for_all(play):
    """Half of twenty calls failed, of several workers together: it opens, and the others learn why."""

    async def scene(fleet: Fleet) -> None:
        assert (await fleet.tell("a", ok=10)).state is CLOSED
        assert (await fleet.tell("b", bad=9, why="x")).state is CLOSED
        assert (await fleet.tell("c", bad=1, why="503 Service Unavailable")).state is OPEN
        view = await fleet.tell("a")
        assert (view.state, view.reason) == (OPEN, "10 of 20 calls failed, the last: 503 Service Unavailable")
        assert 0 < view.probe_in_s <= 1.2 * RULES.probe_s

    play(scene)


@pytest.mark.parametrize(
    "report",
    [
        {"ok": 0, "bad": 19, "streak": 19},
        {"ok": 11, "bad": 9},
        {"bad": 3, "streak": 3, "streak_s": 60, "witnesses": 3},
        {"bad": 19, "streak": 19, "streak_s": 0.9, "witnesses": 19},
        {"bad": 1, "streak": 100, "streak_s": 60, "witnesses": 1},
        {"bad": 0, "doubts": 64},
        {"bad": 0, "doubts": 70, "settled": 6},
    ],
    ids=[
        "too few calls",
        "too few failures",
        "too short a streak",
        "a streak of a moment",
        "one job",
        "as many jobs as a bad file has",
        "jobs that were at fault themselves",
    ],
)
def test_less_than_the_rules_say_leaves_it_closed(play, report):
    """Fewer calls, fewer failures or a shorter streak than the rules name tell nothing; the process thinks the same."""

    async def scene(fleet: Fleet) -> None:
        assert (await fleet.tell(**report)).state is CLOSED
        settled = report.get("settled", 0)
        evidence = {name: value for name, value in report.items() if name != "settled"}
        evidence["doubts"] = evidence.get("doubts", 0) - settled
        assert not RULES.opens(Evidence(**evidence))

    play(scene)


def test_few_calls_that_all_fail_open_it(play):
    """Four failures in a row, over more than a second, open the breaker of an API that is seldom called."""

    async def scene(fleet: Fleet) -> None:
        for _ in range(3):
            assert (await fleet.tell(bad=1, streak=1, streak_s=2, witnesses=1, why="503")).state is CLOSED
        view = await fleet.tell("b", bad=1, streak=1, witnesses=1, why="503")
        assert (view.state, view.reason) == (OPEN, "4 calls in a row failed, the last: 503")

    play(scene)


def test_one_answer_ends_a_streak(play):
    """A call that any worker got an answer for begins the count anew."""

    async def scene(fleet: Fleet) -> None:
        await fleet.tell(bad=3, streak=3, streak_s=60, witnesses=3, doubts=64)
        view = await fleet.tell("b", ok=1)
        assert (view.streak, view.witnesses, view.doubts) == (0, 0, 0)
        assert (await fleet.tell(bad=3, streak=3, streak_s=60, witnesses=3, doubts=64)).state is CLOSED

    play(scene)


def test_very_many_jobs_that_fail_in_a_row_open_it(play):
    """More different jobs than a bad file has, in all workers together and without one answer between, open it."""

    async def scene(fleet: Fleet) -> None:
        assert (await fleet.tell("a", doubts=40)).state is CLOSED
        assert (await fleet.tell("b", doubts=24)).doubts == 64
        view = await fleet.tell("c", doubts=1, why="500 Internal Server Error")
        assert (view.state, view.reason) == (OPEN, "65 jobs in a row failed, the last: 500 Internal Server Error")

    play(scene)


def test_jobs_that_failed_for_good_leave_no_doubt(play):
    """One bad file after the other opens nothing: what failed on all its attempts is known to be at fault itself."""

    async def scene(fleet: Fleet) -> None:
        for _ in range(5):
            assert (await fleet.tell(doubts=50)).state is CLOSED
            assert (await fleet.tell(settled=50)).doubts == 0

    play(scene)


def test_a_worker_whose_probe_failed_lets_others_try(play):
    """The next probe goes to another worker that has a call to try, although the first one asks before it."""

    async def scene(fleet: Fleet) -> None:
        await fleet.open()
        for loser, other in (("a", "b"), ("b", "a")):
            await fleet.probe(loser)
            await fleet.tell(loser, probes_bad=1)
            view = await fleet.tell(other, would_probe=True)
            await asyncio.sleep(view.probe_in_s + 0.01)
            assert (await fleet.tell(loser, would_probe=True)).probes == 0
            assert (await fleet.tell(other, would_probe=True)).probes == 1
            await fleet.tell(other)

    play(scene, BreakerRules(probe_s=0.4, cap_s=0.4))


def test_a_worker_whose_probe_failed_tries_again_where_nobody_else_would(play):
    """One worker alone goes on probing, as soon as it is time."""

    async def scene(fleet: Fleet) -> None:
        await fleet.open()
        await fleet.probe()
        view = await fleet.tell(probes_bad=1)
        await asyncio.sleep(view.probe_in_s + 0.01)
        assert (await fleet.tell(would_probe=True)).probes == 1

    play(scene)


def test_a_call_that_has_nothing_to_do_with_the_failures_need_not_wait(play):
    """A new call may be a probe at once, one a second; where it fails, the next regular probe stays when it was."""

    async def scene(fleet: Fleet) -> None:
        before = await fleet.open()
        assert (await fleet.tell(would_probe=True)).probes == 0
        assert (await fleet.tell("b", would_probe=True, probe_is_new=True)).probes == 1
        view = await fleet.tell("b", probes_doubtful=1)
        assert view.state is OPEN
        assert before.probe_in_s - 5 < view.probe_in_s <= before.probe_in_s
        assert (await fleet.tell("b", would_probe=True, probe_is_new=True)).probes == 0
        await asyncio.sleep(1.01)
        assert (await fleet.tell("b", would_probe=True, probe_is_new=True)).probes == 1
        assert (await fleet.tell("b", probes_good=1)).state is CLOSED

    play(scene, BreakerRules(probe_s=60))


def test_a_probe_whose_job_may_be_at_fault_opens_nothing_once_another_was_answered(play):
    """After a good probe, one that fails in a way that may be its job's fault closes the breaker all the same."""

    async def scene(fleet: Fleet) -> None:
        await fleet.open()
        await fleet.probe()
        assert (await fleet.tell(probes_good=1, would_probe=True)).probes == 2
        assert (await fleet.tell(probes_doubtful=2, would_probe=True)).state is CLOSED
        await fleet.open()
        await fleet.probe()
        assert (await fleet.tell(probes_doubtful=1, would_probe=True)).state is OPEN

    play(scene)


def test_fields_of_other_versions_are_passed_over(play):
    """What an older or newer worker wrote, with fields missing and unknown ones, is read all the same."""

    async def scene(fleet: Fleet) -> None:
        keys = Keys(fleet.api)
        await fleet.redis.hset(keys.state, mapping={"state": 1, "epoch": 7, "probe_at": 0, "reason": "x", "new": "y"})
        await fleet.redis.hset(keys.counts, mapping={"z1": 5})
        view = await fleet.tell()
        assert (view.state, view.epoch, view.reason, view.doubts) == (OPEN, 7, "x", 0)
        assert await fleet.redis.hget(keys.state, "new") == b"y"

    play(scene)


def test_one_process_probes_at_a_time(play):
    """Of ten workers with waiting calls one may probe, with one call."""

    async def scene(fleet: Fleet) -> None:
        await fleet.open()
        await fleet.probe("w0")
        views = [await fleet.tell(f"w{n}", would_probe=True, probing=n == 0) for n in range(10)]
        assert [(view.state, view.probes) for view in views] == [(HALF_OPEN, 0)] * 10

    play(scene)


def test_nobody_probes_before_its_time(play):
    """Until the wait is over no probe is granted."""

    async def scene(fleet: Fleet) -> None:
        await fleet.open()
        assert (await fleet.tell(would_probe=True)).probes == 0

    play(scene, BreakerRules(probe_s=60))


def test_a_prober_that_died_is_replaced(play):
    """A worker killed while it probes blocks nobody for longer than its lease; what it says later is ignored."""

    async def scene(fleet: Fleet) -> None:
        await fleet.open()
        await fleet.probe("dead")
        view = await fleet.probe("heir")
        assert (view.state, view.probes) == (HALF_OPEN, 1)
        assert (await fleet.tell("dead", probes_good=3)).state is HALF_OPEN
        assert (await fleet.tell("heir", probing=True)).state is HALF_OPEN

    play(scene, lease_s=0.1)


def test_a_prober_that_speaks_keeps_its_lease(play):
    """A probe may take longer than the lease while its worker is heard of."""

    async def scene(fleet: Fleet) -> None:
        await fleet.open()
        await fleet.probe("slow")
        for _ in range(30):
            await asyncio.sleep(0.02)
            await fleet.tell("slow", probing=True)
            assert (await fleet.tell("other", would_probe=True)).probes == 0

    play(scene, lease_s=0.3)


def test_a_probe_without_a_call_is_given_on(play):
    """A prober whose call went away leaves the probe to others at once."""

    async def scene(fleet: Fleet) -> None:
        await fleet.open()
        await fleet.probe("a")
        assert (await fleet.tell("a")).state is OPEN
        assert (await fleet.tell("b", would_probe=True)).probes == 1

    play(scene)


def test_good_probes_close_it(play):
    """One probe, then two more: when all three were answered it closes, and what failed before is forgotten."""

    async def scene(fleet: Fleet) -> None:
        await fleet.open()
        assert (await fleet.probe()).probes == 1
        assert (await fleet.tell(probes_good=1, would_probe=True)).probes == 2
        assert (await fleet.tell(probes_good=1, probing=True)).state is HALF_OPEN
        view = await fleet.tell(probes_good=1, would_probe=True)
        assert (view.state, view.ok, view.bad, view.streak, view.reason) == (CLOSED, 0, 0, 0, "")

    play(scene)


def test_the_last_call_of_all_closes_it(play):
    """Where no further call waits, one good probe is enough."""

    async def scene(fleet: Fleet) -> None:
        await fleet.open()
        await fleet.probe()
        assert (await fleet.tell(probes_good=1)).state is CLOSED

    play(scene)


def test_waits_double_up_to_the_cap(play):
    """A failed probe opens it again; each wait is about twice the one before, up to the cap, a fifth more or less."""

    async def scene(fleet: Fleet) -> None:
        view = await fleet.open()
        for expected_s in (0.05, 0.1, 0.2, 0.4, 0.4):
            assert 0.75 * expected_s <= view.probe_in_s <= 1.25 * expected_s
            await fleet.probe()
            view = await fleet.tell(probes_bad=1, why="500 Internal Server Error")
            assert (view.state, view.reason) == (OPEN, "the probe failed: 500 Internal Server Error")

    play(scene)


def test_calls_of_another_epoch_count_nothing(play):
    """Failures of calls that started before it opened do not open it again once it is closed."""

    async def scene(fleet: Fleet) -> None:
        await fleet.tell("late")
        await fleet.open()
        await fleet.probe()
        await fleet.tell(probes_good=3)
        assert (await fleet.tell("late", bad=100, streak=100, streak_s=5)).state is CLOSED
        assert (await fleet.tell("late", bad=100, streak=100, streak_s=5)).state is OPEN

    play(scene)


def test_switched_off_it_never_opens(play):
    """By the rules of ``breaker = false`` no failure opens it."""

    async def scene(fleet: Fleet) -> None:
        report = {"bad": 1000, "streak": 1000, "streak_s": 1000, "witnesses": 1000, "doubts": 1000}
        assert (await fleet.tell(**report)).state is CLOSED

    play(scene, BreakerRules(errors=2, streak=0, jobs=0))


def test_lost_state_is_closed(play):
    """A Redis that lost its data lets calls start, whatever epoch the workers knew."""

    async def scene(fleet: Fleet) -> None:
        await fleet.open()
        await fleet.redis.flushall()
        assert (await fleet.tell()).state is CLOSED
        assert (await fleet.tell(bad=20)).state is OPEN

    play(scene)


def test_every_key_expires(play):
    """Nothing stays in Redis of an API that nobody calls any more."""

    async def scene(fleet: Fleet) -> None:
        await fleet.tell(ok=5, calls=5, failed=3, retries_wanted=3)
        await fleet.open()
        keys = Keys(fleet.api)
        assert 0 < await fleet.redis.pttl(keys.counts) <= 11_000
        assert 0 < await fleet.redis.pttl(keys.state) <= 3_600_000

    play(scene)


def test_retries_of_a_healthy_api_are_free(play):
    """Where hardly any call fails, all retries are granted: those that waited while the API was sick, too."""

    async def scene(fleet: Fleet) -> None:
        assert (await fleet.tell(calls=1000, failed=50, retries_wanted=900)).retries == 900

    play(scene)


@pytest.mark.parametrize(
    ("overloaded", "least"), [(True, RETRIES_OF_OVERLOADED), (False, RETRIES_AT_LEAST)], ids=["overloaded", "failing"]
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(told=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 200), st.integers(0, 900)), max_size=30))
def test_retries_of_a_sick_api_keep_the_budget(play, told, overloaded, least):
    """Whoever asks in whatever order: retries granted are at most a fifth of all calls, and a few.

    Few are ten where the API says that it cannot serve, and what 64 failing jobs need where jobs may be at fault.
    """

    async def scene(fleet: Fleet) -> None:
        calls = granted = 0
        for worker, made, wanted in told:
            calls += made
            bad = made if overloaded else 0
            view = await fleet.tell(worker, calls=made, failed=made, bad=bad, retries_wanted=wanted)
            granted += view.retries
            assert granted <= 0.2 * calls + least

    play(scene, BreakerRules(errors=2, streak=0, jobs=0))


def test_without_redis_the_error_is_ours():
    """A Redis that is not there raises what workers know how to live with."""

    async def main() -> None:
        async with Redis(host="127.0.0.1", port=1) as redis:
            store = BreakerStore(redis, "x", RULES, worker="a")
            with pytest.raises(RedisUnavailableError):
                await store.exchange(WAITING, 0)

    asyncio.run(main())
