"""What one process keeps in mind between exchanges: what it owes, what it was granted, which credentials it may use."""

from __future__ import annotations

import math

import pytest

from callmill.config.limit_spec import parse_limit
from callmill.jobs.traffic import NORMAL
from callmill.limits.cost import NOTHING, Cost
from callmill.limits.key_ring import KeyRing
from callmill.limits.keys import Keys
from callmill.limits.layout import layout
from callmill.limits.quota_log import PARTS, QuotaLog
from callmill.limits.rules import KeyRules, LimitRules
from callmill.limits.settlements import Settlements

HOUR_S = 3600.0


class Permits:
    """So many permits of each credential."""

    def __init__(self, *free: int) -> None:
        self.each = free

    @property
    def free(self) -> int:
        """All of them."""
        return sum(self.each)

    def free_of(self, key: int) -> int:
        """Those of one credential."""
        return self.each[key]


@pytest.fixture
def settlements():
    """Return settlements where requests are paced and tokens counted."""
    limits = (parse_limit("10/second"), parse_limit("1000 tokens/minute"))
    rules = LimitRules(limits, keys=(KeyRules("a"), KeyRules("b")))
    return Settlements(layout(rules, Keys("test"), "", NORMAL))


def test_what_is_owed_is_summed_by_credential_since_the_earliest_start(settlements):
    """What is owed for several slots of a credential is one settlement, since the earliest start with a refund."""
    settlements.owe(0, 100.0, (0, 7, 0, 0), NOTHING)
    settlements.owe(0, 98.0, NOTHING, (0, 3, 0, 0))
    settlements.owe(0, 99.0, (2, 0, 0, 0), (0, 4, 0, 0))
    settlements.owe(1, 97.0, NOTHING, (0, 1, 0, 0))
    first, second = settlements.take(101.0)
    assert (first.key, first.since_us, first.dearer, first.unused) == (1, -3_000_000, (2, 7, 0, 0), (0, 7, 0, 0))
    assert (second.key, second.since_us, second.dearer, second.unused) == (2, -4_000_000, NOTHING, (0, 1, 0, 0))


def test_what_no_limit_counts_is_not_owed(settlements):
    """Units that no limit counts, and unused ones that are of no use again, make no settlement."""
    settlements.owe(0, 1.0, (0, 0, 5, 5), (1, 0, 5, 5))
    assert not settlements
    assert settlements.due_at == math.inf
    assert settlements.take(2.0) == []


def test_after_a_lost_exchange_charges_are_told_again_and_refunds_are_not(settlements):
    """A charge told twice is safe, a refund told twice is not."""
    settlements.owe(0, 1.0, (0, 5, 0, 0), (0, 3, 0, 0))
    lost = settlements.take(2.0)
    assert not settlements
    settlements.keep_charges(lost)
    (due,) = settlements.take(9.0)
    assert (due.key, due.since_us, due.dearer, due.unused) == (1, 0, (0, 5, 0, 0), NOTHING)


def test_what_is_owed_outlives_a_change_of_limits(settlements):
    """What a call cost beyond what was reserved under other limits is still told."""
    settlements.settle(0, 1.0, Cost(10), Cost(25))
    settlements.use(layout(LimitRules((parse_limit("99 tokens/second"),)), Keys("test"), "", NORMAL))
    assert settlements.due_at < math.inf
    assert [due.dearer for due in settlements.take(2.0)] == [(0, 15, 0, 0)]


def test_credentials_take_turns():
    """Calls take the credentials in turn, those without a permit or set aside left out."""
    ring = KeyRing(["a", "b", "c"])
    assert [ring.pick(Permits(1, 1, 1), 0.0) for _ in range(4)] == [0, 1, 2, 0]
    assert [ring.pick(Permits(1, 0, 1), 0.0) for _ in range(2)] == [2, 0]
    ring.set_aside(0, 10.0, "401")
    assert {ring.pick(Permits(1, 1, 1), 9.9) for _ in range(4)} == {1, 2}
    assert ring.pick(Permits(1, 0, 0), 9.9) is None
    assert ring.pick(Permits(1, 0, 0), 10.0) == 0


def test_a_credential_is_set_aside_for_the_longest_time_asked_for():
    """A shorter time does not shorten a longer one; taking it back ends all of it."""
    ring = KeyRing(["a", "b"])
    ring.set_aside(0, 50.0, "402")
    ring.set_aside(0, 20.0, "429")
    assert ring.aside(0, 30.0) == (50.0, "402")
    assert ring.aside(0, 50.0) is None
    ring.take_back(0)
    assert ring.aside(0, 30.0) is None


def test_when_some_credential_is_usable():
    """Now, where one is not set aside; else when the first of them comes back."""
    ring = KeyRing(["a", "b"])
    assert ring.usable_from(5.0) == 5.0
    ring.set_aside(0, 50.0, "")
    assert ring.usable_from(5.0) == 5.0
    ring.set_aside(1, 20.0, "")
    assert ring.usable_from(5.0) == 20.0
    assert ring.usable_from(30.0) == 30.0


def test_a_lone_credential_that_is_set_aside_is_not_used():
    """With one credential, being set aside stops everything, and its end starts it again."""
    ring = KeyRing(["only"])
    ring.set_aside(0, 10.0, "401")
    assert ring.pick(Permits(5), 9.0) is None
    assert ring.pick(Permits(5), 10.0) == 0


def test_grants_of_quotas_are_remembered_for_their_window():
    """What was granted of each quota is told with its age while it counts, and less what came back."""
    limits = (parse_limit("100/hour"), parse_limit("5000 tokens/hour per key"), parse_limit("10/second"))
    rules = LimitRules(limits, keys=(KeyRules("a"), KeyRules("b")))
    log = QuotaLog(layout(rules, Keys("test"), "", NORMAL))
    part_s = HOUR_S / PARTS
    log.count(0, 1000 * part_s, Cost(tokens=40).columns)
    log.count(1, 1000 * part_s + 1, Cost(tokens=50).columns)
    log.count(1, 1002 * part_s, Cost(tokens=60).columns)
    now = 1003 * part_s
    assert sorted(log.grants(now)) == [
        (0, 0.0, 1),
        (0, 2 * part_s, 2),
        (1, 2 * part_s, 40),
        (2, 0.0, 60),
        (2, 2 * part_s, 50),
    ]
    log.count(0, 1000 * part_s, Cost(tokens=40).columns, -1)
    assert (1, 2 * part_s, 40) not in log.grants(now)
    assert log.grants(now + HOUR_S + 2 * part_s) == []


def test_full_key_is_used_no_more_until_it_is_not():
    """A credential with as many calls as it may have is left out; with no other, nothing is due until that changes."""
    ring = KeyRing(["a", "b"])
    assert ring.fill(0, full=True)
    assert not ring.fill(0, full=True)
    assert ring.usable_from(5.0) == 5.0
    ring.set_aside(1, 9.0, "401")
    assert ring.usable_from(5.0) == 9.0
    assert ring.fill(1, full=True)
    assert ring.usable_from(5.0) == math.inf
    assert ring.fill(0, full=False)
    assert ring.usable_from(5.0) == 5.0
