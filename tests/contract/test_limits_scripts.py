"""What the scripts of the limiter promise, case by case, on a Redis whose time the test sets."""

from __future__ import annotations

from itertools import pairwise

import pytest
from limits_kit import GUARD_US, LEAD_US, Fleet, Worker, jain, rules

from callmill.config.limit_spec import Enforcer
from callmill.limits.store import HORIZON_US, LONGEST_COLD_WAIT_US


def gaps(starts):
    """Return the distances between neighbours."""
    return {after - before for before, after in pairwise(sorted(starts))}


def test_strict_servers_are_paced_with_the_guard(redis_url):
    """Starts for a strict server are (window + guard) / amount apart, to the microsecond."""
    fleet = Fleet(redis_url, rules("1000/second"))
    assert gaps(fleet.reserve(fleet.warm(), 100).starts_us) == {(1_000_000 + GUARD_US) // 1000}


def test_bucket_servers_are_paced_at_their_very_rate(redis_url):
    """Starts for a bucket server whose burst forgives the guard are window / amount apart."""
    fleet = Fleet(redis_url, rules("1000/second", enforcer=Enforcer.BUCKET, burst=20))
    assert gaps(fleet.reserve(fleet.warm(), 100).starts_us) == {1000}


def test_a_bucket_without_burst_is_paced_with_the_guard(redis_url):
    """A bucket that forgives nothing gets the guard added to every emission."""
    fleet = Fleet(redis_url, rules("100/second", enforcer=Enforcer.BUCKET, burst=1))
    assert gaps(fleet.reserve(fleet.warm(), 10).starts_us) == {10_000 + GUARD_US}


def test_fractions_of_microseconds_are_not_lost(redis_url):
    """An emission that is no whole number of microseconds still uses more than 99.7 % of what the guard leaves."""
    fleet = Fleet(redis_url, rules("10000/second"))
    starts = fleet.reserve(fleet.warm(), 128).starts_us
    assert len(starts) == 128
    assert 127 * 100.8 <= starts[-1] - starts[0] <= 127 * 101.05


def test_first_slot_of_a_new_state_waits(redis_url):
    """Where Redis knows nothing, no start is granted before the cold wait is over, and then they are paced."""
    fleet = Fleet(redis_url, rules("100/second"))
    worker, began = Worker("a"), fleet.us
    while not worker.starts_us:
        fleet.reserve(worker, 10)
        fleet.set_time(max(fleet.us + 1, worker.again_us))
    assert 2 * HORIZON_US <= worker.starts_us[0] - began <= LONGEST_COLD_WAIT_US
    assert gaps(worker.starts_us) == {10_080}


def test_the_cold_wait_is_bounded(redis_url):
    """Even a limit of one call a day starts its first call within the longest cold wait."""
    fleet = Fleet(redis_url, rules("1/day"))
    worker = Worker("a")
    fleet.reserve(worker, 0)
    fleet.set_time(fleet.us + LONGEST_COLD_WAIT_US)
    assert fleet.reserve(worker, 1).starts_us == [fleet.us + LEAD_US]


def test_survivors_bring_what_they_hold_into_a_new_life(redis_url):
    """After lost state, no start is granted less than an emission after what a survivor still holds."""
    fleet = Fleet(redis_url, rules("1/minute"))
    survivor, other = fleet.warm(), Worker("b")
    fleet.reserve(survivor, 1)
    fleet.set_time(fleet.us + 11_000_000)
    held = fleet.reserve(survivor, 1).starts_us[0]
    assert held > fleet.us
    fleet.wipe()
    fleet.reserve(other, 0)
    fleet.reserve(survivor, 0)
    fleet.set_time(held)
    while not other.starts_us:
        fleet.reserve(other, 1)
        fleet.set_time(max(fleet.us + 1, other.again_us))
    assert other.starts_us[0] - held >= 60_000_000


def test_regressed_state_is_a_new_life(redis_url):
    """A fail-over that lost writes (the sequence number went back) waits like a cold start and gets a new boot id."""
    fleet = Fleet(redis_url, rules("100/second"))
    worker = fleet.warm()
    saved = fleet.redis.hgetall(fleet.keys.meta)
    old_boot = fleet.reserve(worker, 5).boot
    fleet.redis.hset(fleet.keys.meta, mapping=saved)
    reply = fleet.reserve(worker, 5)
    assert reply.boot != old_boot
    assert reply.starts_us == []
    assert reply.again_in_us >= HORIZON_US


def test_a_worker_that_knows_an_older_boot_adopts_the_new_one(redis_url):
    """Only the first who notices lost state causes a cold wait; others join the new life."""
    fleet = Fleet(redis_url, rules("100/second"))
    first, second = fleet.warm(), Worker("b")
    fleet.reserve(second, 0)
    fleet.wipe()
    new = fleet.reserve(first, 0).boot
    assert fleet.reserve(second, 0).boot == new


def test_time_going_back_neither_stalls_nor_bursts(redis_url):
    """When TIME jumps back an hour, starts go on in order and at their distance, without waiting for an hour."""
    fleet = Fleet(redis_url, rules("100/second"))
    worker = fleet.warm()
    fleet.reserve(worker, 10)
    before = fleet.reserve(worker, 0).now_us
    fleet.jump(-3_600_000_000)
    assert fleet.reserve(worker, 0).now_us == before
    fleet.set_time(fleet.us + 50_000)
    reply = fleet.reserve(worker, 10)
    assert reply.now_us == before + 50_000
    assert len(reply.starts_us) == 10
    assert gaps(worker.starts_us) == {10_080}


def test_all_limits_hold_and_nothing_is_charged_for_a_refusal(redis_url):
    """A call waits for its dearest limit, and a refused request moves no clock of any limit."""
    fleet = Fleet(redis_url, rules("100/second", "600 tokens/minute"))
    worker = fleet.warm()
    (first,) = fleet.reserve(worker, 1, (10,)).starts_us
    fleet.set_time(first + 900_000)
    (second,) = fleet.reserve(worker, 1, (600,)).starts_us
    assert second - first == pytest.approx(10 * 60_008_000 / 600, abs=1)
    fleet.set_time(second)
    assert fleet.reserve(worker, 1, (1,)).starts_us == []
    clocks = [fleet.redis.hget(key, "tat") for key in fleet.limit_keys]
    assert fleet.reserve(worker, 5, (1,) * 5).starts_us == []
    assert [max(float(fleet.redis.hget(key, "tat")), fleet.us) for key in fleet.limit_keys] == [
        max(float(clock), fleet.us) for clock in clocks
    ]


def test_a_call_dearer_than_its_window_passes(redis_url):
    """A call that costs more tokens than the window holds starts when no debt is left, and is paid for afterwards."""
    fleet = Fleet(redis_url, rules("100 tokens/second"))
    worker = fleet.warm()
    dear = fleet.reserve(worker, 1, (500,)).starts_us
    assert dear == [fleet.us + LEAD_US]
    fleet.set_time(dear[0] + 4_900_000)
    (after,) = fleet.reserve(worker, 1, (1,)).starts_us
    assert after - dear[0] == 5 * (1_000_000 + GUARD_US)


def test_refunds_pay_for_later_calls(redis_url):
    """Tokens that were reserved and not used let later calls start sooner, in order, without any being lost."""
    fleet = Fleet(redis_url, rules("6000 tokens/minute"))
    worker = fleet.warm()
    (first,) = fleet.reserve(worker, 1, (100,)).starts_us
    fleet.reserve(worker, 0, settle=-50)
    starts = []
    while len(starts) < 2:
        fleet.set_time(max(fleet.us + 1, worker.again_us))
        starts += fleet.reserve(worker, 1, (100,)).starts_us
    assert starts[0] - first == pytest.approx(50 * 10_001.33, abs=2)
    assert starts[1] - starts[0] == pytest.approx(100 * 10_001.33, abs=2)


def test_a_dear_call_that_is_not_made_costs_no_window(redis_url):
    """A slot that reserved the whole window and passed unused leaves the next call waiting for nothing."""
    fleet = Fleet(redis_url, rules("6000 tokens/minute"))
    worker = fleet.warm()
    (first,) = fleet.reserve(worker, 1, (6000,)).starts_us
    fleet.set_time(first + 10_000)
    fleet.reserve(worker, 0, settle=-6000)
    (second,) = fleet.reserve(worker, 1, (6000,)).starts_us
    assert second - first < 20_000


def test_debts_delay_later_calls(redis_url):
    """Tokens used beyond what was reserved delay the next start by just their emission."""
    fleet = Fleet(redis_url, rules("6000 tokens/minute"))
    worker = fleet.warm()
    (first,) = fleet.reserve(worker, 1, (10,)).starts_us
    fleet.reserve(worker, 0, settle=15)
    fleet.set_time(first + 200_000)
    (second,) = fleet.reserve(worker, 1, (10,)).starts_us
    assert second - first == pytest.approx(25 * 10_001.33, abs=2)


def test_idle_time_is_no_credit(redis_url):
    """After an hour without calls, starts are paced from the first on."""
    fleet = Fleet(redis_url, rules("100/second"))
    worker = fleet.warm()
    fleet.reserve(worker, 3)
    fleet.set_time(fleet.us + 3_600_000_000)
    worker.starts_us.clear()
    fleet.reserve(worker, 20)
    assert gaps(worker.starts_us) == {10_080}


def test_a_pause_is_for_everybody_and_only_grows(redis_url):
    """No start lies within a pause, whoever asks; a shorter pause does not shorten it; its reason is told."""
    fleet = Fleet(redis_url, rules("100/second"))
    first, second = Worker("a"), Worker("b")
    fleet.warm()
    assert fleet.pause(5_000_000, "429 Retry-After") == 5_000_000
    assert fleet.pause(1_000_000, "later, shorter") == 5_000_000
    until = fleet.us + 5_000_000
    reply = fleet.reserve(second, 10)
    assert (reply.starts_us, reply.pause_us, reply.reason) == ([], 5_000_000, "429 Retry-After")
    fleet.set_time(until - 100_000)
    starts = fleet.reserve(second, 10).starts_us + fleet.reserve(first, 10).starts_us
    assert starts[0] == until
    assert gaps(starts) == {10_080}


@pytest.mark.parametrize(("pause_s", "after_s"), [(35, 60.018), (70, 70)])
def test_a_pause_spends_no_slot(redis_url, pause_s, after_s):
    """Slots that a pause makes void are not charged; only a call that may have fired just now is kept in mind."""
    fleet = Fleet(redis_url, rules("1/minute"))
    worker = fleet.warm()
    fired = fleet.reserve(worker, 1).starts_us[0]
    fleet.set_time(fired + 30_000_000)
    (void,) = fleet.reserve(worker, 1).starts_us
    paused = fleet.us
    fleet.pause(pause_s * 1_000_000)
    assert fired < void < paused + pause_s * 1_000_000
    fleet.set_time(paused + pause_s * 1_000_000)
    assert fleet.reserve(worker, 1).starts_us[0] - paused == pytest.approx(after_s * 1e6, abs=LEAD_US)


def test_a_lone_worker_uses_all_of_a_low_rate(redis_url):
    """At one call per second (an emission longer than the horizon) a lone worker gets all, one exchange each."""
    fleet = Fleet(redis_url, rules("1/second"))
    worker = fleet.warm()
    worker.exchanges = 0
    fleet.run([worker], 60, calls=[5])
    assert gaps(worker.starts_us) == {1_000_000 + GUARD_US}
    assert worker.exchanges <= 1.2 * len(worker.starts_us)


@pytest.mark.parametrize(("limit", "tokens"), [("1/second", 0), ("6000 tokens/minute", 100)])
def test_a_waiter_that_died_costs_no_start(redis_url, limit, tokens):
    """Where calls are a second apart, the next in line comes in time for the start of a worker that died."""
    fleet = Fleet(redis_url, rules(limit))
    fleet.warm()
    workers = [Worker(f"w{index}") for index in range(5)]
    fleet.run(workers, 30, calls=[5] * 5, leave={0: 3.3, 1: 8.6, 2: 15.5}, tokens=tokens)
    starts = [start for worker in workers for start in worker.starts_us]
    assert max(gaps(starts)) - min(gaps(starts)) <= 1


def test_low_rates_are_shared_fairly_without_polling(redis_url):
    """16 workers at one call per second: all get their turn, nothing is left unused, about two exchanges a call."""
    fleet = Fleet(redis_url, rules("1/second"))
    fleet.warm()
    workers = [Worker(f"w{index}") for index in range(16)]
    fleet.run(workers, 64, calls=[5] * 16)
    starts = [start for worker in workers for start in worker.starts_us]
    assert gaps(starts) == {1_000_000 + GUARD_US}
    assert min(len(worker.starts_us) for worker in workers) >= 3
    assert jain([len(worker.starts_us) for worker in workers]) > 0.97
    assert sum(worker.exchanges for worker in workers) < 3 * len(starts)


@pytest.mark.parametrize(("rate", "count"), [("20/second", 16), ("200/second", 16), ("1000/second", 3)])
def test_rates_are_shared_fairly(redis_url, rate, count):
    """Workers with endless demand get equal shares of the whole rate, however many calls they ask for at once."""
    fleet = Fleet(redis_url, rules(rate))
    fleet.warm()
    workers = [Worker(f"w{index}") for index in range(count)]
    fleet.run(workers, 8, calls=[4 if index % 2 else 128 for index in range(count)] if count == 16 else [128] * count)
    starts = sorted(start for worker in workers for start in worker.starts_us)
    assert max(gaps(starts)) <= (1_000_000 + GUARD_US) / fleet.layout.nodes[0].clock.amount + 1
    settled = starts[0] + 1_000_000  # who comes first finds nobody to share with
    assert jain([sum(start > settled for start in worker.starts_us) for worker in workers]) > 0.99


def test_nothing_is_left_unused_when_a_worker_leaves(redis_url):
    """Workers that leave or die take no share with them: the others use the whole rate at once."""
    fleet = Fleet(redis_url, rules("200/second"))
    fleet.warm()
    workers = [Worker(f"w{index}") for index in range(8)]
    fleet.run(workers, 8, calls=[128] * 8, leave=dict.fromkeys(range(5), 3.0))
    starts = [start for worker in workers for start in worker.starts_us]
    assert max(gaps(starts)) <= (1_000_000 + GUARD_US) / 200 + 1


def test_the_greatest_guard_is_in_force_for_all_and_forgotten(redis_url):
    """Starts are paced with the greatest guard that any worker asked for lately; soon after it is forgotten."""
    fleet = Fleet(redis_url, rules("1000/second"))
    worker = fleet.warm()
    fleet.reserve(worker, 1, guard_us=30_000)
    assert gaps(fleet.reserve(worker, 10).starts_us) == {1030}
    fleet.set_time(fleet.us + 9_000_000)
    assert fleet.reserve(worker, 0).guard_us == 30_000
    fleet.set_time(fleet.us + 11_000_000)
    assert fleet.reserve(worker, 0).guard_us == GUARD_US


def test_a_changed_amount_keeps_the_clock(redis_url):
    """New numbers for a limit change the pace from the next start on and forgive nothing that is booked."""
    fleet = Fleet(redis_url, rules("10/second"))
    worker = fleet.warm()
    fleet.reserve(worker, 3)
    booked = fleet.redis.hget(fleet.limit_keys[0], "tat")
    fleet.use(rules("100/second"))
    fleet.set_time(worker.latest_us)
    starts = fleet.reserve(worker, 3).starts_us
    assert starts[0] == pytest.approx(float(booked), abs=1)
    assert gaps(starts) == {10_080}


def test_dead_waiters_keep_nobody_waiting(redis_url):
    """At a low rate the turns promised to workers that died pass to the living: these soon use the whole rate."""
    fleet = Fleet(redis_url, rules("1/second"))
    fleet.warm()
    workers = [Worker(f"w{index}") for index in range(12)]
    fleet.run(workers, 120, calls=[5] * 12, leave=dict.fromkeys(range(10), 20.0))
    starts = sorted(start for worker in workers for start in worker.starts_us)
    assert sum(starts[-1] - start < 60_000_000 for start in starts) >= 58
    assert not fleet.redis.zrange(fleet.keys.queue("normal"), 0, -1)[2:]
