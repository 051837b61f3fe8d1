"""Quotas under random calls, refunds, late settlements, unfired slots and jumps of time."""

from __future__ import annotations

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limits_kit import GUARD_US, Fleet, Worker, heaviest_window, rules

from callmill.config.limit_spec import Unit

MIXES = (
    ("30/hour",),
    ("2/second", "30/hour"),
    ("500 tokens/hour",),
    ("10/hour", "40/day"),
    ("90/minute", "60/hour", "900 tokens/hour"),
)
HOUR_US = 3_600_000_000
STEPS_US = (1_000, 300_000, 5_000_000, 40_000_000, 700_000_000, 1_900_000_000, 3_700_000_000)


class History:
    """Every slot granted, with what it really spent, and the exchanges that brought it about."""

    def __init__(self, fleet: Fleet, chance: random.Random) -> None:
        self.fleet = fleet
        self.chance = chance
        self.slots: list[list[int]] = []  # start, tokens, calls

    def grant(self, worker: Worker) -> None:
        """Ask for some calls."""
        costs = [self.chance.randint(0, 60) for _ in range(self.chance.randint(1, 12))]
        reply = self.fleet.reserve(worker, len(costs), costs)
        self.slots += [[start, cost, 1] for start, cost in zip(reply.starts_us, costs, strict=False)]

    def refund(self, worker: Worker) -> None:
        """Settle one or two calls, maybe long ago, below their cost; one of them may have never been fired."""
        chosen = self.chance.sample(self.slots, min(len(self.slots), self.chance.randint(1, 2)))
        unused = 0
        for slot in chosen:
            part = self.chance.randint(0, slot[1])
            slot[1] -= part
            unused += part
        unfired = self.chance.randint(0, chosen[0][2])
        chosen[0][2] -= unfired
        since = min(slot[0] for slot in chosen)
        self.fleet.reserve(worker, 0, settle=-unused, unfired=unfired, since_us=since)

    def check(self) -> None:
        """No window of any quota, widened by the guard, holds more than it may; the sum that is kept is right."""
        for index, clock in enumerate(self.fleet.clocks):
            if clock.quota:
                unit = 1 if clock.spec.unit is Unit.TOKENS else 2
                spent = [(slot[0], slot[unit]) for slot in self.slots]
                assert self.fleet.used(index) >= 0
                assert heaviest_window(spent, clock.window_us + GUARD_US) <= clock.spec.amount


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(limits=st.sampled_from(MIXES), seed=st.integers(0, 10**9))
def test_no_window_of_a_quota_holds_too_much(redis_url, limits, seed):
    """Whatever is granted, given back and when, no window holds more than the quota; an idle quota is free again."""
    chance = random.Random(seed)
    fleet = Fleet(redis_url, rules(*limits))
    fleet.wipe()
    fleet.warm()
    history, workers = History(fleet, chance), [Worker(name) for name in "abc"]
    for _ in range(60):
        history.grant(chance.choice(workers))
        if history.slots and chance.random() < 0.4:
            history.refund(chance.choice(workers))
        fleet.set_time(fleet.us + chance.choice((*STEPS_US, HOUR_US - chance.randrange(40_000_000))))
    history.check()
    granted = len(history.slots)
    fleet.set_time(fleet.us + 90_000_000_000)
    history.grant(workers[0])
    assert len(history.slots) > granted
    fleet.redis.close()
