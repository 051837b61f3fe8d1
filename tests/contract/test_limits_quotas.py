"""What limits of an hour or longer promise, on a Redis whose time the test sets."""

from __future__ import annotations

import pytest
from limits_kit import GUARD_US, LEAD_US, Fleet, Worker, heaviest_window, rules

from callmill.limits.rules import LimitRules, validity_s

HOUR_US = 3_600_000_000
BUCKET_US = HOUR_US // 96
LOOK_US = 5_000_000


def spend(fleet: Fleet, worker: Worker, calls: int, cost: int = 1) -> list[int]:
    """Let a worker take that many calls, each when it may, and return their starts."""
    starts: list[int] = []
    while len(starts) < calls:
        wanted = calls - len(starts)
        starts += fleet.reserve(worker, wanted, (cost,) * wanted).starts_us
        fleet.set_time(max(fleet.us + 1, worker.again_us))
    return starts


def limited_by(fleet: Fleet, by: int) -> str:
    """Return the text of the limit that an answer names."""
    return str(fleet.layout.nodes[by - 1].clock.spec) if by else ""


def ages_at(start_us: int) -> int:
    """Return when an hour quota forgets a call of this start."""
    return (start_us // BUCKET_US + 1) * BUCKET_US + HOUR_US + GUARD_US


def test_a_quota_alone_holds_nothing_back_until_it_is_spent(redis_url):
    """Under a daily limit alone, all calls of one exchange start at once."""
    fleet = Fleet(redis_url, rules("10000/day"))
    reply = fleet.reserve(fleet.warm(), 128)
    assert reply.starts_us == [fleet.us + LEAD_US] * 128
    assert reply.by == 0


def test_a_quota_is_spent_at_the_pace_of_the_other_limits(redis_url):
    """A batch of N under N an hour beside 100 a second takes N / 100 seconds, and no longer."""
    fleet = Fleet(redis_url, rules("100/second", "500/hour"))
    starts = spend(fleet, fleet.warm(), 500)
    assert starts[-1] - starts[0] == pytest.approx(499 * 10_080, abs=1)


def test_a_spent_quota_waits_until_its_oldest_bucket_has_aged_out(redis_url):
    """Call N + 1 starts as soon as the bucket of the first call is an hour and a guard old, and not before."""
    fleet = Fleet(redis_url, rules("100/second", "50/hour"))
    worker = fleet.warm()
    first = spend(fleet, worker, 30)[0]
    fleet.set_time(first + 600_000_000)
    spend(fleet, worker, 20)
    fleet.set_time(ages_at(first) - 1_000_000)
    assert fleet.reserve(worker, 60).starts_us == []
    starts = spend(fleet, worker, 30)
    assert starts[0] == ages_at(first)
    assert fleet.reserve(worker, 1).starts_us == []


def test_a_spent_quota_is_named_and_looked_at_again_soon(redis_url):
    """The limit that holds calls back is the quota; its waiters come again within seconds, for it may be freed."""
    fleet = Fleet(redis_url, rules("100/second", "20/hour"))
    worker = fleet.warm()
    spend(fleet, worker, 20)
    reply = fleet.reserve(worker, 1)
    assert limited_by(fleet, reply.by) == "20/hour"
    assert 0 < reply.again_in_us <= LOOK_US


def test_all_or_nothing_over_quotas_and_paces(redis_url):
    """A call that one quota refuses is counted by no other limit."""
    fleet = Fleet(redis_url, rules("1000 tokens/day", "100/hour"))
    worker = fleet.warm()
    assert len(fleet.reserve(worker, 1, (900,)).starts_us) == 1
    reply = fleet.reserve(worker, 3, (101, 1, 1))
    assert reply.starts_us == []
    assert limited_by(fleet, reply.by) == "1000 tokens/day"
    assert (fleet.used(0), fleet.used(1)) == (900, 1)
    assert len(fleet.reserve(worker, 3, (98, 1, 1)).starts_us) == 3


def test_refunded_tokens_can_be_spent_at_once(redis_url):
    """Tokens reserved and not used are free again in the same window; tokens used beyond are taken from it."""
    fleet = Fleet(redis_url, rules("1000 tokens/hour"))
    worker = fleet.warm()
    (start,) = fleet.reserve(worker, 1, (1000,)).starts_us
    fleet.set_time(start + 1_000_000)
    assert fleet.reserve(worker, 1, (1,)).starts_us == []
    fleet.reserve(worker, 0, settle=-900, since_us=start)
    assert fleet.used() == 100
    fleet.reserve(worker, 0, settle=200)
    assert fleet.reserve(worker, 1, (701,)).starts_us == []
    assert len(fleet.reserve(worker, 1, (700,)).starts_us) == 1


def test_a_refund_is_taken_from_the_window_of_its_call(redis_url):
    """A refund that comes late frees what its call reserved, never what later calls really use, and never below 0."""
    fleet = Fleet(redis_url, rules("1000 tokens/hour"))
    worker = fleet.warm()
    (old,) = fleet.reserve(worker, 1, (400,)).starts_us
    fleet.set_time(old + 3 * BUCKET_US)
    fleet.reserve(worker, 1, (600,))
    fleet.reserve(worker, 0, settle=-500, since_us=old)
    assert fleet.used() == 600
    fleet.set_time(ages_at(old) + 1)
    assert fleet.reserve(worker, 1, (401,)).starts_us == []
    assert len(fleet.reserve(worker, 1, (400,)).starts_us) == 1


def test_slots_that_passed_without_a_call_are_given_back(redis_url):
    """A quota of calls counts no slot that its holder reports as unfired."""
    fleet = Fleet(redis_url, rules("10/hour"))
    worker = fleet.warm()
    starts = fleet.reserve(worker, 10).starts_us
    fleet.set_time(starts[0] + 1_000_000)
    assert len(fleet.reserve(worker, 10, unfired=3, since_us=starts[0]).starts_us) == 3


def test_a_call_without_tokens_waits_for_a_spent_quota(redis_url):
    """A call of unknown cost starts only where there is room for a token at least."""
    fleet = Fleet(redis_url, rules("100 tokens/hour"))
    worker = fleet.warm()
    assert len(fleet.reserve(worker, 2, (0, 99)).starts_us) == 2
    assert len(fleet.reserve(worker, 2, (0, 1)).starts_us) == 2
    assert fleet.reserve(worker, 1, (0,)).starts_us == []


def test_a_call_dearer_than_its_quota_passes_when_nothing_else_counts(redis_url):
    """A call above the whole quota starts alone, after all before it have aged out, and blocks nobody for ever."""
    fleet = Fleet(redis_url, rules("100 tokens/hour"))
    worker = fleet.warm()
    (first,) = fleet.reserve(worker, 1, (1,)).starts_us
    assert fleet.reserve(worker, 1, (500,)).starts_us == []
    (dear,) = spend(fleet, worker, 1, 500)
    assert dear == ages_at(first)
    assert spend(fleet, worker, 1) == [ages_at(dear)]


def test_a_quota_outlives_the_workers(redis_url):
    """Workers that start anew find counted what those before them spent."""
    fleet = Fleet(redis_url, rules("100/second", "50/hour"))
    spend(fleet, fleet.warm(), 45)
    fresh = Worker("fresh")
    fleet.publish()
    assert len(fleet.reserve(fresh, 0).starts_us) == 0
    assert len(fleet.reserve(fresh, 50).starts_us) == 5


def test_a_changed_amount_keeps_what_is_used(redis_url):
    """New numbers of a quota count what was spent under the old ones."""
    fleet = Fleet(redis_url, rules("20/hour"))
    worker = fleet.warm()
    spend(fleet, worker, 20)
    for amount, more in (("15/hour", 0), ("26/hour", 6)):
        fleet.use(rules(amount))
        fleet.set_time(worker.again_us)
        assert len(fleet.reserve(worker, 50).starts_us) == more


def test_an_empty_redis_knows_of_no_usage(redis_url):
    """After lost state a quota begins anew: after the cold wait, all of it can be spent."""
    fleet = Fleet(redis_url, rules("20/hour"))
    worker = fleet.warm()
    spend(fleet, worker, 20)
    fleet.wipe()
    fleet.reserve(worker, 0)
    fleet.set_time(fleet.us + LOOK_US)
    assert len(fleet.reserve(worker, 20).starts_us) == 20


def test_a_quota_keeps_few_fields_and_expires(redis_url):
    """A window and a half of calls leaves one window of buckets; without calls the hash goes after two windows."""
    fleet = Fleet(redis_url, rules("1000/hour"))
    worker = fleet.warm()
    for _ in range(300):
        fleet.reserve(worker, 2)
        fleet.set_time(fleet.us + BUCKET_US // 2)
    fields = fleet.redis.hgetall(fleet.limit_keys[0])
    assert 96 <= sum(name.isdigit() for name in fields) <= 99
    assert 2 * 3600 - 60 <= fleet.redis.ttl(fleet.limit_keys[0]) <= 2 * 3600


def test_workers_with_endless_demand_use_a_quota_wholly(redis_url):
    """Over two hours, waiting workers spend the whole of an hour's quota every hour and a bucket, no window more."""
    fleet = Fleet(redis_url, rules("10/second", "300/hour"))
    fleet.warm()
    workers = [Worker(f"w{index}") for index in range(3)]
    fleet.run(workers, 2 * 3600, calls=[128, 4, 20])
    starts = [start for worker in workers for start in worker.starts_us]
    assert heaviest_window([(start, 1) for start in starts], HOUR_US + GUARD_US) == 300
    assert len(starts) == 600
    assert min(len(worker.starts_us) for worker in workers) >= 130


@pytest.mark.parametrize("burst", [1, 20])
def test_a_quota_does_not_shorten_the_validity_of_slots(burst):
    """How late a slot may be fired does not depend on quotas: their calls need no distance."""
    alone: LimitRules = rules("10/second", enforcer="bucket", burst=burst)
    beside: LimitRules = rules("10/second", "5/hour", enforcer="bucket", burst=burst)
    assert validity_s(alone) == validity_s(beside)
