"""How quotas survive lost state: what survivors tell is what was granted, once."""

from __future__ import annotations

import pytest
from limits_kit import Fleet, Worker, rules

from callmill.limits.cost import ONE_REQUEST, Cost
from callmill.limits.quota_log import QuotaLog
from callmill.limits.scripts import ToldGrant
from callmill.limits.store import LONGEST_COLD_WAIT_US

HOUR_US = 3_600_000_000


class Survivor:
    """A worker that notes what it is granted and tells a new life of the state, as workers do."""

    def __init__(self, fleet: Fleet, name: str) -> None:
        self.fleet, self.worker = fleet, Worker(name)
        self.log = QuotaLog(fleet.layout)

    def take(self, costs: list[int]) -> int:
        """Ask for starts of calls with these tokens; tell a new life what was granted before. Return how many."""
        known = self.worker.boot
        reply = self.fleet.reserve(self.worker, len(costs), costs)
        if known and reply.boot != known and not reply.boot.endswith("kept"):
            assert self.tell(reply.boot) == 1
        for start, cost in zip(reply.starts_us, costs, strict=False):
            self.log.count(0, start / 1e6, (Cost(cost) if cost else ONE_REQUEST).columns)
        return len(reply.starts_us)

    def tell(self, boot: str) -> int:
        """Bring back what was granted; return whether it was counted."""
        keys = [node.key for node in self.fleet.layout.quotas]
        grants = [
            ToldGrant(quota=index + 1, age_us=round(age_s * 1e6), units=units)
            for index, age_s, units in self.log.grants(self.fleet.us / 1e6)
        ]
        return self.fleet.restore(keys, boot, grants)


@pytest.fixture
def fleet(redis_url):
    """Return a fleet with two quotas, past its cold start."""
    made = Fleet(redis_url, rules("50/second", "1000/hour", "90000 tokens/day"))
    made.warm()
    return made


def work(fleet: Fleet, crowd: list[Survivor], rounds: int = 12) -> None:
    """Let workers take some calls over half an hour."""
    for index in range(rounds):
        for survivor in crowd:
            survivor.take([10 * (index + 1)] * 4)
            fleet.set_time(fleet.us + HOUR_US // (2 * rounds * len(crowd)))


def test_what_survivors_tell_is_what_was_granted(fleet):
    """After lost state each quota counts just what it did before, when all have told, and no more by asking again."""
    crowd = [Survivor(fleet, name) for name in "abc"]
    work(fleet, crowd)
    before = (fleet.used(1), fleet.used(2))
    assert before[0] == 144
    fleet.wipe()
    for _ in range(2):
        for survivor in crowd:
            assert survivor.take([]) == 0
    assert (fleet.used(1), fleet.used(2)) == before


def test_what_the_dead_were_granted_is_all_that_is_missing(fleet):
    """A worker that died with the state takes only its own part of the count with it."""
    crowd = [Survivor(fleet, name) for name in "abc"]
    work(fleet, crowd)
    fleet.wipe()
    for survivor in crowd[:2]:
        survivor.take([])
    assert fleet.used(1) == 96


def test_restored_quotas_age_like_others(fleet):
    """What was brought back is forgotten when its window is over, neither sooner nor much later."""
    survivor = Survivor(fleet, "a")
    while fleet.used(1) < 1000:
        survivor.take([0] * 50)
        fleet.set_time(fleet.us + 1_000_000)
    spent = fleet.us
    fleet.wipe()
    survivor.take([])
    fleet.set_time(spent - 20_000_000 + HOUR_US - 60_000_000)
    assert survivor.take([0] * 5) == 0
    fleet.set_time(spent + HOUR_US + 2 * HOUR_US // 96)
    assert survivor.take([0] * 5) == 5


@pytest.mark.parametrize("fault", ["clock", "takeover"])
def test_nothing_is_doubled_when_the_counts_are_kept(fleet, fault):
    """A life that begins with a jump of the clock, or with another server, keeps the counts: nobody tells."""
    crowd = [Survivor(fleet, name) for name in "ab"]
    work(fleet, crowd)
    before, boot = (fleet.used(1), fleet.used(2)), crowd[0].worker.boot
    if fault == "clock":
        fleet.jump(-HOUR_US)
    else:
        fleet.redis.hset(fleet.keys.meta, "server", "another")
    for survivor in crowd:
        survivor.take([])
        assert survivor.worker.boot != boot
    assert (fleet.used(1), fleet.used(2)) == before


def test_what_is_told_to_a_life_that_is_over_is_not_counted(fleet):
    """A report that arrives after the state was lost once more belongs to no life and changes nothing."""
    survivor = Survivor(fleet, "a")
    work(fleet, [survivor])
    fleet.wipe()
    assert survivor.tell("another life") == 0
    survivor.take([])
    assert fleet.used(1) == 48


def test_a_full_quota_stays_full_through_lost_state(fleet):
    """A spent hour stays spent: once the survivors have told, nobody is granted a call before its starts have aged."""
    crowd = [Survivor(fleet, name) for name in "ab"]
    while fleet.used(1) < 1000:
        for survivor in crowd:
            survivor.take([0] * 50)
        fleet.set_time(fleet.us + 1_000_000)
    fleet.wipe()
    for survivor in crowd:
        survivor.take([])
    fleet.set_time(fleet.us + LONGEST_COLD_WAIT_US)
    assert fleet.reserve(Worker("new"), 5).starts_us == []
