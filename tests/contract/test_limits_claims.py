"""A refusal pauses no more than its evidence: a wait beyond any window of the limits needs a second answer."""

from __future__ import annotations

import pytest
from limits_kit import Fleet, Worker, rules

from callmill.limits import scripts

SECOND, HOUR, WEEK = 1_000_000, 3_600_000_000, 604_800_000_000


def refused(
    fleet: Fleet, claim_us: int, witness: str, *, pause_us: int = SECOND, sent_us: int = 10_000, scope: str = ""
) -> int:
    """Tell that a job's call, sent so long ago, was asked to wait so long; return the us of pause that are left."""
    call = scripts.PAUSE.call(
        scripts.PauseKeys(fleet.keys.meta, fleet.keys.paused, fleet.limit_keys),
        scripts.PauseArguments(
            pause_us=pause_us,
            said_us=0,
            reason="429",
            channel=fleet.keys.channel,
            scope=scope,
            claim_us=claim_us,
            started_us=sent_us,
            witness=witness,
        ),
    )
    left: int = fleet._run(call)[1]
    return left


@pytest.fixture
def fleet(redis_url: str) -> Fleet:
    """Return a fleet that calls 100 times a second at most."""
    made = Fleet(redis_url, rules("100/second"))
    made.warm()
    return made


@pytest.mark.parametrize("scope", ["", "key:a", "model:b"])
def test_one_answer_alone_pauses_for_a_window(fleet, scope):
    """What asks for a week pauses for what is plausible; asked again, another job's like answer confirms it."""
    assert refused(fleet, WEEK, "job 1", scope=scope) == SECOND
    fleet.set_time(fleet.us + SECOND + 50_000)
    left = refused(fleet, WEEK, "job 2", scope=scope)
    assert WEEK - 2 * SECOND < left < WEEK


def test_the_shorter_of_two_claims_is_believed(fleet):
    """Two answers agree on no more than the shorter wait."""
    assert refused(fleet, WEEK, "job 1") == SECOND
    fleet.set_time(fleet.us + SECOND + 50_000)
    assert refused(fleet, HOUR, "job 2") == HOUR


def test_answers_to_calls_of_one_moment_confirm_nothing(fleet):
    """What was sent before the pause was over is the same event, whoever sent it."""
    assert refused(fleet, WEEK, "job 1") == SECOND
    assert refused(fleet, WEEK, "job 2") == SECOND
    fleet.set_time(fleet.us + SECOND + 50_000)
    assert refused(fleet, WEEK, "job 3", sent_us=SECOND) == SECOND


def test_the_same_job_confirms_nothing(fleet):
    """A job that is refused again and again may be the reason itself; another job confirms what it said."""
    for _ in range(3):
        assert refused(fleet, WEEK, "job 1") == SECOND
        fleet.set_time(fleet.us + SECOND + 50_000)
    assert refused(fleet, WEEK, "job 2") > HOUR


def test_a_resume_ends_a_claim(fleet):
    """After somebody resumed the API, an answer alone is believed no more than the first one was."""
    assert refused(fleet, WEEK, "job 1") == SECOND
    fleet.set_time(fleet.us + SECOND // 2)
    fleet.redis.hset(fleet.keys.meta, "resumed", f"{fleet.us:.0f}")
    fleet.redis.hdel(fleet.keys.meta, "pause", "reason")
    fleet.set_time(fleet.us + SECOND)
    assert refused(fleet, WEEK, "job 2") == SECOND


def test_a_claim_that_is_over_confirms_nothing(fleet):
    """An answer of long ago and one of now do not speak of the same wait."""
    assert refused(fleet, HOUR, "job 1") == SECOND
    fleet.set_time(fleet.us + HOUR + SECOND)
    assert refused(fleet, HOUR, "job 2") == SECOND


def test_a_quota_that_headers_say_is_spent_blocks_for_an_hour(redis_url):
    """An answer that nothing remains for a day blocks for an hour; the answer to the next call confirms the day."""
    fleet = Fleet(redis_url, rules("10000/day"))
    fleet.warm()
    day_us = 24 * HOUR

    def told() -> None:
        fact = scripts.ToldFact(limit=1, kind="block", first=day_us - 2 * HOUR, second=0)
        arguments = scripts.FeedArguments(channel=fleet.keys.channel, facts=[fact])
        fleet._run(scripts.FEED.call(scripts.FeedKeys(fleet.keys.meta, fleet.limit_keys), arguments))

    def blocked_us() -> int:
        return round(float(fleet.redis.hget(fleet.limit_keys[0], "block") or 0)) - fleet.us

    told()
    fleet.set_time(fleet.us + SECOND)
    told()
    assert HOUR - 2 * SECOND <= blocked_us() <= HOUR
    fleet.set_time(fleet.us + HOUR + SECOND)
    assert fleet.reserve(Worker("a"), 1).starts_us
    told()
    assert blocked_us() > 20 * HOUR
