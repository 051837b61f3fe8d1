"""The limiter's scripts under any interleaving of workers, pauses, clocks and losses of state."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

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
from limits_kit import GUARD_US, LEAD_US, Fleet, Reply, Worker, heaviest_window, rules
from msgspec.structs import replace

from callmill.config.limit_spec import Unit
from callmill.jobs.traffic import NORMAL, Priority, TrafficClass
from callmill.limits.layout import OF_API, OF_MODEL, Node, layout
from callmill.limits.rules import KeyRules

LIMITS = (
    ("20/second",),
    ("7/second", "100/minute"),
    ("50/second", "3000 tokens/minute"),
    ("90/minute", "40 tokens/second", "1000/hour"),
    ("1000/second",),
    ("50/hour",),
    ("5/second", "30/hour", "400 tokens/hour"),
    ("100/second", "20/second per key"),
    ("60/second per key", "2000 tokens/minute per key"),
    ("100/second", "10/second per model"),
    ("30/second", "400/minute per model", "50/hour per key"),
)
GROUPS = [(model, traffic) for model in ("", "m") for traffic in (NORMAL, TrafficClass(Priority.BULK, "b"))]
ROUNDING_US = 1
EXAMPLES = int(os.environ.get("CALLMILL_TEST_EXAMPLES", "60"))
"""How many interleavings are tried; ``CALLMILL_TEST_EXAMPLES=20000`` tries for long."""
WEIGHTS = (1, 1, 5, 1, 2, 3)
COSTS = st.tuples(st.sampled_from(WEIGHTS), st.integers(0, 60))
"""The weight of a call and its tokens."""


class Booked(NamedTuple):
    """A slot that was fired or may be: when it really starts, and for what."""

    start: int
    weight: int
    tokens: int
    group: int
    key: int


class LimitsMachine(RuleBasedStateMachine):
    """Workers that reserve, in a world that pauses, forgets, and whose clock jumps; times are those that pass."""

    def __init__(self, redis_url: str) -> None:
        super().__init__()
        self.redis_url = redis_url
        self.booked: list[Booked] = []  # in order of granting
        self.workers: list[Worker] = []
        self.paused_until = 0
        self.logical_us = 0
        self.boot = ""
        self.not_before = 0
        self.forgotten = 0  # slots of former lives: their tokens are forgotten
        self.ahead_us = 0  # by how much jumps made the state age

    @initialize(
        limits=st.sampled_from(LIMITS),
        keys=st.integers(1, 2),
        groups=st.tuples(*[st.integers(0, 3)] * 3),
        heavy=st.booleans(),
    )
    def begin(self, *, limits: tuple[str, ...], keys: int, groups: tuple[int, ...], heavy: bool) -> None:
        """Begin with empty state; every worker has looked once, so that it will see the clock jump."""
        names = tuple(KeyRules(name) for name in "ab"[:keys])
        self.fleet = Fleet(self.redis_url, replace(rules(*limits), keys=names))
        self.fleet.wipe()
        self.fleet.watchful = True
        self.groups = groups
        self.heavy = heavy
        self.not_before = self.fleet.real_us + LEAD_US
        for index, group in enumerate(groups):
            model, traffic = GROUPS[group]
            self.workers.append(Worker(f"w{index}|{model}", model=model, traffic=traffic))
            self._look(index)
        self.pass_time(us=5_000_000)

    @rule(rounds=st.integers(1, 10), step_us=st.integers(1_000, 300_000), calls=st.integers(1, 30))
    def work(self, *, rounds: int, step_us: int, calls: int) -> None:
        """All workers ask in turn for some time."""
        for index in range(3 * rounds):
            of = [7 * index + call for call in range(calls)]
            self.reserve(who=index % 3, costs=[(WEIGHTS[n % len(WEIGHTS)] if self.heavy else 1, n % 60) for n in of])
            self.pass_time(us=step_us // 3)

    @rule(who=st.integers(0, 2), costs=st.lists(COSTS, min_size=1, max_size=40))
    def reserve(self, *, who: int, costs: list[tuple[int, int]]) -> None:
        """A worker asks for its waiting calls, whether or not it was told to come later."""
        worker = self.workers[who]
        boot = worker.boot
        reply = self._exchange(who, costs, watched=True)
        if not reply.starts_us and not worker.stepped:
            assert reply.again_in_us > 0
            if worker.boot == boot:
                assert self._moved(worker, reply) == []
        for start, (weight, tokens), key in zip(reply.starts_us, costs, reply.keys, strict=False):
            assert start >= reply.now_us + LEAD_US
            real = self.fleet.real_us + start - reply.now_us
            assert real >= self.paused_until - ROUNDING_US
            assert real >= self.not_before - ROUNDING_US
            self.booked.append(Booked(real, weight, tokens, self.groups[who], key))

    @rule(us=st.one_of(st.integers(0, 20_000), st.integers(20_000, 3_000_000), st.just(70_000_000)))
    def pass_time(self, us: int) -> None:
        """Time passes."""
        self.fleet.set_time(self.fleet.us + us)

    @rule(us=st.one_of(st.integers(-10_000_000, -1), st.integers(10_000, 10_000_000)))
    def set_clock(self, us: int) -> None:
        """Redis's clock is set back, or ahead: then what is kept for a time ages by as much."""
        if us > 0:
            self.fleet.jump(us)
            self.paused_until -= us
            self.not_before -= us
            self.ahead_us += us
            return
        self._look()
        self.fleet.jump(us)
        self._look()

    @rule(us=st.integers(1, 3_000_000))
    def pause(self, us: int) -> None:
        """A 429 pauses the API; holders drop the slots of that time."""
        self._look()
        left = self.fleet.pause(us)
        assert left >= us
        now = self.fleet.real_us
        self.paused_until = max(self.paused_until, now + left)
        kept = [slot for slot in self.booked if slot.start <= now or slot.start >= self.paused_until]
        self.forgotten -= sum(slot not in kept for slot in self.booked[: self.forgotten])
        self.booked = kept

    @precondition(lambda self: self.booked)
    @rule()
    def lose_state(self) -> None:
        """Redis forgets everything; the survivors hear of it and tell what they hold."""
        self._look()
        self.fleet.wipe()
        self.paused_until = 0
        self.logical_us = 0
        for index in range(len(self.workers)):
            self._look(index)
        self.not_before = self.fleet.real_us + 500_000
        self.forgotten = len(self.booked)

    @invariant()
    def starts_of_a_group_are_in_order(self) -> None:
        """Where calls cost the same, each group's starts are granted in order; else a cheap one may fill a gap."""
        if self.booked and not self.fleet.layout.counts_tokens and len(self.fleet.rules.keys) == 1:
            for group in set(self.groups):
                starts = [slot.start for slot in self.booked if slot.group == group]
                assert all(after >= before - ROUNDING_US for before, after in pairwise(starts))

    @invariant()
    def no_window_holds_too_much(self) -> None:
        """No window, widened by the guard, holds more than any limit; of paced tokens, one call more."""
        for model in {GROUPS[group][0] for group in self.groups} if self.booked else ():
            for node in layout(self.fleet.rules, self.fleet.keys, model, NORMAL).nodes:
                self._check(node, model)

    def teardown(self) -> None:
        """Close the connection."""
        if hasattr(self, "fleet"):
            self.fleet.redis.close()

    def _check(self, node: Node, model: str) -> None:
        clock, amount = node.clock, node.clock.spec.amount
        tokens = clock.spec.unit is Unit.TOKENS
        met = [
            (slot.start, slot.tokens if tokens else slot.weight)
            for slot in (self.booked[self.forgotten :] if tokens or clock.quota else self.booked)
            if node.owner == OF_API
            or (node.owner == OF_MODEL and GROUPS[slot.group][0] == model)
            or node.owner == slot.key
        ]
        if clock.quota:
            assert heaviest_window(met, clock.window_us + GUARD_US - self.ahead_us) <= amount
            return
        most = amount + (max((cost for _, cost in met), default=0) if tokens else 0)
        aged_us = self.ahead_us if tokens else 0  # a debt of tokens is kept for a time, as quotas are
        assert heaviest_window(met, max(1, clock.window_us + GUARD_US - 2 * amount - aged_us)) <= most
        if not tokens:
            emission = (clock.window_us + GUARD_US) / clock.amount
            assert all(
                after - before >= emission * units - 2 * ROUNDING_US
                for (before, units), (after, _) in pairwise(sorted(met))
            )

    def _look(self, who: int = 0) -> None:
        self._exchange(who)

    def _exchange(self, who: int, costs: Sequence[tuple[int, int]] = (), *, watched: bool = False) -> Reply:
        worker = self.workers[who]
        read = [(node.key, _counter(node)) for node in self._nodes(worker)] if watched else []
        reply = self.fleet.reserve(worker, len(costs), costs, read=read)
        assert reply.now_us >= self.logical_us, "the clock went back"
        self.logical_us = reply.now_us
        if reply.boot != self.boot:  # all workers hear of a new life at once, and look
            self.boot = reply.boot
            for other in set(range(len(self.workers))) - {who}:
                self._look(other)
        return reply

    def _nodes(self, worker: Worker) -> Sequence[Node]:
        return layout(self.fleet.rules, self.fleet.keys, worker.model, worker.traffic).nodes

    def _moved(self, worker: Worker, reply: Reply) -> list[tuple[float, float]]:
        """The limits that were charged; time alone brings a pace up to now, and a quota down."""
        counted = zip(self._nodes(worker), reply.before, reply.after, strict=True)
        return [
            (float(was or 0), float(now or 0))
            for node, was, now in counted
            if (
                float(now or 0) > float(was or 0)
                if node.clock.quota
                else float(now or 0) != max(float(was or 0), self.logical_us)
            )
        ]


def _counter(node: Node) -> str:
    """Return the field that a charge changes: when a pace is free, or how many units of a quota are used."""
    return "total" if node.clock.quota else "tat"


@pytest.mark.parametrize("steps", [40])
def test_limits_hold_under_any_interleaving(redis_url, steps):
    """Pacing, windows, pauses, cold starts and all-or-nothing hold whatever workers, clocks and losses do."""
    run_state_machine_as_test(
        lambda: LimitsMachine(redis_url),
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_heavy_calls_keep_their_window_when_the_clock_goes_back(redis_url):
    """What started before the clock was set back, heavy calls included, still counts in the window afterwards."""
    machine = LimitsMachine(redis_url)
    machine.begin(limits=("20/second",), keys=1, groups=(0, 0, 1), heavy=True)
    machine.work(calls=3, rounds=1, step_us=1_000)
    machine.set_clock(us=-1)
    machine.work(calls=1, rounds=1, step_us=1_000)
    machine.work(calls=1, rounds=1, step_us=1_000)
    machine.work(calls=1, rounds=7, step_us=166_152)
    machine.no_window_holds_too_much()
    machine.teardown()


def test_a_heavy_call_is_paid_for_although_state_is_lost_and_the_api_paused(redis_url):
    """A pause voids what is still to start, and not the distance to a heavy call that only its holder remembers."""
    machine = LimitsMachine(redis_url)
    machine.begin(limits=("90/minute", "40 tokens/second", "1000/hour"), keys=1, groups=(0, 0, 0), heavy=True)
    machine.work(calls=1, rounds=1, step_us=1_000)
    machine.pass_time(us=70_000_000)
    machine.work(calls=1, rounds=1, step_us=1_000)
    machine.lose_state()
    machine.work(calls=1, rounds=8, step_us=166_815)
    machine.pause(us=1)
    machine.work(calls=1, rounds=3, step_us=1_000)
    machine.no_window_holds_too_much()
    machine.teardown()


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
