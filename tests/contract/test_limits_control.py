"""Changes at run time, on a real Redis."""

from __future__ import annotations

import asyncio
import time

import pytest
from limits_kit import Fleet, rules
from redis.asyncio import Redis

from callmill.config.limit_spec import parse_limit
from callmill.errors import RedisUnavailableError, UnknownFormatError, UsageError
from callmill.limits.control import ChangeKind, InForce, LimitControl, Pause, load_in_force
from callmill.limits.keys import Keys
from callmill.limits.store import LimitStore

SPECS = (parse_limit("300/minute"), parse_limit("64 concurrent"))
YEAR_S = 365 * 86_400


@pytest.fixture
def control_of(redis_url):
    """Run a test's work with the control of the API ``test``, Redis, and what the limiter's channel says."""

    def run(work):
        async def session():
            async with Redis.from_url(redis_url) as redis, redis.pubsub() as pubsub:
                await pubsub.subscribe(Keys("test").channel)
                await pubsub.get_message(timeout=5)

                async def told():
                    message = await pubsub.get_message(timeout=5)
                    return None if message is None else message["data"].decode()

                return await work(LimitControl(redis, "test"), redis, told)

        return asyncio.run(session())

    return run


def _milliseconds(seconds, micros):
    return seconds * 1000 + micros // 1000


def test_nothing_is_set_at_first(control_of):
    """Where nobody changed anything, the profile's limits hold, generation 0, and there is no history."""

    async def work(control, redis, _told):
        state = await control.current()
        assert (state.generation, state.limits, state.pause, dict(state.keys)) == (0, None, None, {})
        assert await load_in_force(redis, "test") == InForce(0, None)
        assert await control.history(10) == []

    control_of(work)


def test_limits_are_set_told_and_taken_back(control_of):
    """Limits set at run time are in force with a new generation that the channel tells, until they are taken back."""

    async def work(control, redis, told):
        first = await control.set(["300/min", "64 concurrent"], by="anna@desk")
        assert await told() == f"rules {first}"
        assert await load_in_force(redis, "test") == InForce(first, SPECS)
        assert (await control.current()).limits == SPECS
        second = await control.set(None, by="ben")
        assert second > first
        assert await told() == f"rules {second}"
        assert await load_in_force(redis, "test") == InForce(second, None)
        newest, oldest = await control.history(10)
        assert (oldest.by, oldest.what, oldest.key) == ("anna@desk", ChangeKind.LIMITS, None)
        assert (oldest.before, oldest.after) == ("those of the profile", "300/minute, 64 concurrent")
        assert (newest.by, newest.before, newest.after) == ("ben", oldest.after, oldest.before)
        assert newest.at >= oldest.at

    control_of(work)


def test_a_change_that_changes_nothing_is_told_again_and_not_recorded(control_of):
    """Setting the limits in force keeps generation and history, and tells them again to whoever missed it."""

    async def work(control, _redis, told):
        first = await control.set(["300/minute"], by="anna")
        assert await control.set(["300 requests per minute"], by="anna") == first
        assert [await told(), await told()] == [f"rules {first}"] * 2
        assert len(await control.history(10)) == 1

    control_of(work)


@pytest.mark.parametrize(
    ("limits", "complaint"),
    [
        (["300/fortnight"], "is no limit; write"),
        (["300/minute", "200 calls/min"], "count the same"),
        ([], "at least one limit"),
    ],
)
def test_wrong_limits_are_refused(control_of, limits, complaint):
    """Limits that cannot be read or contradict each other change nothing, and the message says what is wrong."""

    async def work(control, redis, _told):
        with pytest.raises(UsageError, match=complaint):
            await control.set(limits, by="anna")
        assert await load_in_force(redis, "test") == InForce(0, None)

    control_of(work)


def test_limits_of_one_unit_in_other_scopes_stand_side_by_side(control_of):
    """The same unit and window may be limited for the API, each key and each model."""
    texts = ["300/minute", "60/minute per key", "100/minute per model"]

    async def work(control, redis, _told):
        generation = await control.set(texts, by="anna")
        assert await load_in_force(redis, "test") == InForce(generation, tuple(map(parse_limit, texts)))

    control_of(work)


def test_a_pause_holds_every_reservation_until_it_is_resumed(control_of, redis_url):
    """After a pause without end the reserve script grants nothing, days later neither; after the resume it does."""
    fleet = Fleet(redis_url, rules("100/second"))
    worker = fleet.warm()

    async def work(control, _redis, told):
        await control.pause(None, "maintenance", by="anna")
        assert (await told()).startswith("pause ")
        fleet.set_time(time.time_ns() // 1000)  # the pause was told by the real clock
        paused = fleet.reserve(worker, 4)
        assert (paused.starts_us, paused.reason) == ([], "maintenance")
        assert paused.pause_us > 90 * YEAR_S * 1e6
        fleet.set_time(fleet.us + 30 * 86_400 * 10**6)
        assert fleet.reserve(worker, 4).starts_us == []
        assert (await control.current()).pause == Pause(None, "maintenance", "anna")
        await control.resume(by="ben")
        assert await told() == "resume -"
        resumed = fleet.reserve(worker, 4)
        assert (len(resumed.starts_us), resumed.pause_us, resumed.reason) == (4, 0, "")
        assert (await control.current()).pause is None

    control_of(work)


def with_quota(redis_url):
    """Return a fleet with a worker, and the place of its limit per day."""
    fleet = Fleet(redis_url, rules("100/second", "1000/day"))
    return fleet, fleet.warm(), next(n for n, key in enumerate(fleet.limit_keys) if key.endswith(":86400"))


def test_what_an_answer_said_before_a_resume_blocks_nothing(control_of, redis_url):
    """A worker tells late, after a resume, that a quota is spent: no call waits for it; what is said later counts."""
    fleet, worker, quota = with_quota(redis_url)

    async def work(control, _redis, _told):
        fleet.set_time(time.time_ns() // 1000)  # resumes happen by the real clock
        await control.resume(by="ben")
        fleet.set_time(time.time_ns() // 1000 + 10_000)
        assert fleet.feed(quota, "block", 2 * 86_400e6, 250_000) == 0
        assert len(fleet.reserve(worker, 4).starts_us) == 4
        assert fleet.feed(quota, "block", 3_600e6, 0) == 1
        fleet.set_time(fleet.us + 1_000_000)
        assert fleet.reserve(worker, 4).starts_us == []
        fleet.set_time(fleet.us + 3_600 * 10**6)
        assert len(fleet.reserve(worker, 4).starts_us) == 4

    control_of(work)


def test_a_shorter_block_counts_after_a_resume(control_of, redis_url):
    """A quota is spent for days, somebody resumes the API, and it is spent for an hour: for an hour no call starts."""
    fleet, worker, quota = with_quota(redis_url)

    async def work(control, _redis, _told):
        fleet.set_time(time.time_ns() // 1000)
        assert fleet.feed(quota, "block", 2 * 86_400e6) == 1
        await control.resume(by="ben")
        fleet.set_time(time.time_ns() // 1000 + 1_000_000)
        assert fleet.feed(quota, "block", 3_600e6) == 1
        assert fleet.reserve(worker, 4).starts_us == []
        fleet.set_time(fleet.us + 3_601 * 10**6)
        assert len(fleet.reserve(worker, 4).starts_us) == 4

    control_of(work)


@pytest.mark.parametrize(("scope", "key"), [("", None), ("key:a", "a")])
def test_a_pause_that_is_told_late_undoes_no_resume(control_of, redis_url, scope, key):
    """What was said before the API, or a credential, was resumed pauses nothing; what is said after that does."""
    fleet = Fleet(redis_url, rules("100/second"))
    fleet.warm()

    async def work(control, _redis, _told):
        fleet.set_time(time.time_ns() // 1000)
        assert fleet.pause(60_000_000, "429", scope) == 60_000_000
        await control.resume(by="ben", key=key)
        fleet.set_time(time.time_ns() // 1000 + 1_000_000)
        assert fleet.pause(60_000_000, "429", scope, said_us=2_000_000) == 0
        state = await control.current()
        assert (state.pause, dict(state.keys)) == (None, {})
        assert fleet.pause(60_000_000, "429", scope, said_us=500_000) == 60_000_000

    control_of(work)


def test_pauses_are_recorded(control_of):
    """The history tells who paused for how long and why, and who resumed; a resume of what runs is no change."""

    async def work(control, _redis, _told):
        await control.pause(600, "maintenance", by="anna")
        await control.pause(None, "still broken", by="ben")
        await control.pause(None, "still broken", by="cleo")
        await control.pause(60, "shorter", by="dora")
        await control.resume(by="ben")
        await control.resume(by="ben")
        changes = [(change.by, change.what.value, change.before, change.after) for change in await control.history(10)]
        assert changes == [
            ("ben", "resume", "paused until resumed: still broken", "running"),
            ("ben", "pause", "paused for 600 s: maintenance", "paused until resumed: still broken"),
            ("anna", "pause", "running", "paused for 600 s: maintenance"),
        ]

    control_of(work)


def test_a_pause_by_an_answer_has_no_author(control_of):
    """A pause that an answer of the API caused is shown with its reason and nobody's name, and a resume ends it."""

    async def work(control, redis, _told):
        await control.pause(1, "a moment", by="anna")
        await LimitStore(redis, "test", "worker").pause([], 60, "429 of the API")
        pause = (await control.current()).pause
        assert (pause.reason, pause.by) == ("429 of the API", None)
        assert 50 < pause.left_s <= 60
        await control.resume(by="anna")
        assert (await control.current()).pause is None
        assert (await control.history(1))[0].before.endswith("s: 429 of the API")

    control_of(work)


def test_keys_are_paused_one_by_one(control_of):
    """The pause of one credential leaves the API and the others alone, and is told, shown and resumed by its name."""

    async def work(control, _redis, told):
        await control.pause(600, "leaked", by="anna", key="team b")
        assert await told() == "pause 600000000 key:team b leaked"
        state = await control.current()
        assert (state.pause, list(state.keys)) == (None, ["team b"])
        assert (state.keys["team b"].reason, state.keys["team b"].by) == ("leaked", "anna")
        assert 590 < state.keys["team b"].left_s <= 600
        await control.pause(None, "for good", by="anna", key="team a")
        await told()
        assert (await control.current()).keys["team a"].left_s is None
        await control.resume(by="anna", key="team b")
        assert await told() == "resume key:team b"
        assert list((await control.current()).keys) == ["team a"]
        assert [change.key for change in await control.history(10)] == ["team b", "team a", "team b"]

    control_of(work)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 400 * 86_400])
def test_senseless_pauses_are_refused(control_of, seconds):
    """A pause without a length, or longer than a year, is the caller's mistake."""

    async def work(control, _redis, _told):
        with pytest.raises(UsageError, match="until resumed"):
            await control.pause(seconds, "", by="anna")

    control_of(work)


def test_generations_differ_over_the_lives_of_redis(control_of):
    """A generation does not come again after the state was lost: a worker of the former life sees the change."""

    async def work(control, redis, _told):
        before = await control.set(["300/minute"], by="anna")
        await redis.flushall()
        while _milliseconds(*await redis.time()) <= before:  # within one millisecond nobody would notice
            pass
        assert await load_in_force(redis, "test") == InForce(0, None)
        assert await control.set(["200/minute"], by="anna") > before

    control_of(work)


def test_history_is_bounded(control_of):
    """Of any number of changes the last 1000 are kept."""

    async def work(control, redis, _told):
        for number in range(1, 1_021):
            await control.set([f"{number}/minute"], by="anna")
        changes = await control.history(5_000)
        assert len(changes) == 1_000
        assert (changes[0].after, changes[-1].after) == ("1020/minute", "21/minute")
        assert await redis.xlen(Keys("test").history) == 1_000

    control_of(work)


def test_changes_at_once_are_all_counted(control_of):
    """Changes by many at the same time each get a generation and an entry of their own, and the last one holds."""

    async def work(control, redis, _told):
        texts = [[f"{number}/minute"] for number in range(1, 41)]
        generations = await asyncio.gather(*(control.set(limits, by="x") for limits in texts))
        assert len(set(generations)) == 40
        found = await load_in_force(redis, "test")
        assert found.generation == max(generations)
        assert found.limits == (parse_limit(texts[generations.index(found.generation)][0]),)
        changes = list(reversed(await control.history(100)))
        assert [change.before for change in changes[1:]] == [change.after for change in changes[:-1]]

    control_of(work)


def test_what_cannot_be_read_or_reached_is_said(control_of):
    """Limits of a newer Callmill and a Redis that refuses are errors of their own, not a fall-back to other limits."""

    async def work(control, redis, _told):
        await redis.hset(Keys("test").control, "limits", '["5 gigaflops/second"]')
        with pytest.raises(UnknownFormatError, match="upgrade"):
            await load_in_force(redis, "test")
        await redis.set(Keys("test").control, "no hash")
        for refused in (load_in_force(redis, "test"), control.set(["1/second"], by="x"), control.current()):
            with pytest.raises(RedisUnavailableError):
                await refused

    control_of(work)
