"""The limiter's scripts under any interleaving of workers, pauses, clocks and losses of state."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from limits_kit import GUARD_US, LEAD_US, Fleet, Worker, heaviest_window, rules, worst_window

from callmill.config.limit_spec import Unit
from callmill.limits.store import LONGEST_COLD_WAIT_US

LIMITS = (
    ("20/second",),
    ("7/second", "100/minute"),
    ("50/second", "3000 tokens/minute"),
    ("90/minute", "40 tokens/second", "1000/hour"),
    ("1000/second",),
    ("50/hour",),
    ("5/second", "30/hour", "400 tokens/hour"),
)
ROUNDING_US = 1


class LimitsMachine(RuleBasedStateMachine):
    """Workers that reserve, in a world that pauses, forgets, and whose clock goes back."""

    def __init__(self, redis_url: str) -> None:
        super().__init__()
        self.redis_url = redis_url
        self.booked: list[
            tuple[int, int]
        ] = []  # start and tokens of every slot that is fired or may be, in order of granting
        self.workers = [Worker(name) for name in "abc"]
        self.paused_until = 0
        self.logical_us = 0
        self.not_before = 0
        self.forgotten = 0  # slots of former lives: their tokens are forgotten

    @initialize(limits=st.sampled_from(LIMITS), warm=st.booleans())
    def begin(self, *, limits: tuple[str, ...], warm: bool) -> None:
        """Begin with empty state, or past the cold wait."""
        self.fleet = Fleet(self.redis_url, rules(*limits))
        self.fleet.wipe()
        self.not_before = self.fleet.us + LEAD_US
        if warm:
            self.fleet.reserve(self.workers[0], 0)
            self.fleet.set_time(self.fleet.us + LONGEST_COLD_WAIT_US)

    @rule(who=st.integers(0, 2), costs=st.lists(st.integers(0, 60), min_size=1, max_size=40))
    def reserve(self, *, who: int, costs: list[int]) -> None:
        """A worker asks for its waiting calls, whether or not it was told to come later."""
        worker = self.workers[who]
        clocks, used = self._clocks(), self._used()
        reply = self.fleet.reserve(worker, len(costs), costs)
        assert reply.now_us >= self.logical_us, "the clock went back"
        self.logical_us = reply.now_us
        if not reply.starts_us:
            assert self._clocks() == [max(clock, reply.now_us) for clock in clocks] or not clocks
            assert all(after <= before for before, after in zip(used, self._used(), strict=True))
            assert reply.again_in_us > 0
        for start, cost in zip(reply.starts_us, costs, strict=False):
            assert start >= reply.now_us + LEAD_US
            assert start >= self.paused_until - ROUNDING_US
            assert start >= self.not_before
            self.booked.append((start, cost))

    @rule(us=st.one_of(st.integers(0, 20_000), st.integers(20_000, 3_000_000), st.just(70_000_000)))
    def pass_time(self, us: int) -> None:
        """Time passes."""
        self.fleet.set_time(self.fleet.us + us)

    @rule(us=st.integers(1, 10_000_000))
    def set_clock_back(self, us: int) -> None:
        """Redis's clock is set back."""
        self._look()
        self.fleet.jump(-us)
        self._look()

    @rule(us=st.integers(1, 3_000_000))
    def pause(self, us: int) -> None:
        """A 429 pauses the API; holders drop the slots of that time."""
        now = self._look()
        left = self.fleet.pause(us)
        assert left >= us
        self.paused_until = max(self.paused_until, now + left)
        self.booked = [slot for slot in self.booked if slot[0] <= now or slot[0] >= self.paused_until]

    @precondition(lambda self: self.booked)
    @rule()
    def lose_state(self) -> None:
        """Redis forgets everything; the survivors hear of it and tell what they hold."""
        self._look()
        self.fleet.wipe()
        self.paused_until = 0
        for worker in self.workers:
            self.logical_us = self.fleet.reserve(worker, 0).now_us
        self.not_before = self.logical_us + 500_000
        self.forgotten = len(self.booked)

    @invariant()
    def starts_are_paced(self) -> None:
        """Neighbouring starts are in order, and an emission of what the earlier costs apart on every pace."""
        assert all(after >= before for (before, _), (after, _) in pairwise(self.booked))
        for clock in self.fleet.clocks if self.booked else ():
            if clock.quota:
                continue
            emission = (clock.window_us + GUARD_US) / clock.amount
            tokens = clock.spec.unit is Unit.TOKENS
            slots = self.booked[self.forgotten :] if tokens else self.booked
            for (before, cost), (after, _) in pairwise(slots):
                assert after - before >= emission * (cost if tokens else 1) - ROUNDING_US

    @invariant()
    def no_window_holds_too_much(self) -> None:
        """No window, widened by the guard, holds more than the limit; of paced tokens, one call more."""
        for clock in self.fleet.clocks if self.booked else ():
            if clock.quota:
                tokens = clock.spec.unit is Unit.TOKENS
                life = [(start, cost if tokens else 1) for start, cost in self.booked[self.forgotten :]]
                assert heaviest_window(life, clock.window_us + GUARD_US) <= clock.spec.amount
            elif clock.spec.unit is Unit.REQUESTS:
                starts = [start for start, _ in self.booked]
                assert worst_window(starts, clock.window_us + GUARD_US - clock.spec.amount) <= clock.spec.amount
            else:
                self._check_tokens(clock.window_us + GUARD_US, clock.spec.amount)

    def teardown(self) -> None:
        """Close the connection."""
        if hasattr(self, "fleet"):
            self.fleet.redis.close()

    def _check_tokens(self, window_us: int, amount: int) -> None:
        slots = self.booked[self.forgotten :]
        first, total = 0, 0
        for start, cost in slots:
            while slots[first][0] <= start - window_us:
                total -= slots[first][1]
                first += 1
            assert total <= amount + max(cost for _, cost in slots)
            total += cost

    def _look(self) -> int:
        self.logical_us = self.fleet.reserve(self.workers[0], 0).now_us
        return self.logical_us

    def _clocks(self) -> list[float]:
        keys = zip(self.fleet.limit_keys, self.fleet.clocks, strict=True)
        return [float(self.fleet.redis.hget(key, "tat") or 0) for key, clock in keys if not clock.quota]

    def _used(self) -> list[int]:
        return [self.fleet.used(index) for index, clock in enumerate(self.fleet.clocks) if clock.quota]


@pytest.mark.parametrize("steps", [40])
def test_limits_hold_under_any_interleaving(redis_url, steps):
    """Pacing, windows, pauses, cold starts and all-or-nothing hold whatever workers, clocks and losses do."""
    run_state_machine_as_test(
        lambda: LimitsMachine(redis_url),
        settings=settings(
            max_examples=60, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(limit=st.sampled_from([1, 4, 10, 100]), seed=st.integers(0, 10**9))
def test_permits_never_exceed_the_limit(redis_url, limit, seed):
    """However workers start, stop, want, die and come late, the permits out never exceed the limit, and some are."""
    fleet, chance = Fleet(redis_url, rules()), random.Random(seed)
    fleet.redis.flushall()
    fleet.set_time(fleet.us)
    lease, granted = 10_000_000, 0
    out: dict[str, tuple[int, int]] = {}  # worker -> permits, end of its lease
    for _ in range(80):
        fleet.set_time(fleet.us + chance.choice((1_000, 100_000, 2_500_000)))
        worker = f"w{chance.randrange(6)}"
        had, end = out.get(worker, (0, 0))
        had = had if end > fleet.us else 0
        want, used = chance.randrange(2 * limit + 1), chance.randint(0, had)
        held = fleet.permits(worker, max(want, used), used, had, limit=limit, lease_us=lease).held
        assert held >= used
        granted += held
        out[worker] = (held, fleet.us + lease)
        assert sum(permits for permits, until in out.values() if until > fleet.us) <= limit
    assert granted > 0
