"""How limits of single models stand beside those of the API, on a Redis whose time the test sets."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limits_kit import GUARD_US, Fleet, Worker, heaviest_window, rules
from msgspec.structs import replace

from callmill.config.limit_spec import Unit, parse_limit
from callmill.limits.layout import layout


def models(redis_url, *limits: str, **own: str) -> Fleet:
    """Return a fleet with limits of single models, past its cold start."""
    fleet = Fleet(redis_url, replace(rules(*limits), models={name: (parse_limit(text),) for name, text in own.items()}))
    fleet.warm()
    return fleet


def crowd(*names: str) -> list[Worker]:
    """Return one worker for each model."""
    return [Worker(f"{index}|{name}", model=name) for index, name in enumerate(names)]


def gaps(workers):
    """Return the distances between neighbouring starts, in order of time."""
    starts = sorted(start for worker in workers for start in worker.starts_us)
    return [after - before for before, after in pairwise(starts)]


def used(fleet, workers, rate: int, seconds: float) -> float:
    """Return which part of a common limit was used in the last seconds."""
    since = fleet.us - round(seconds * 1e6)
    return sum(start >= since for worker in workers for start in worker.starts_us if start < fleet.us) / (
        rate * seconds / (1 + GUARD_US / 1e6)
    )


def test_a_model_keeps_its_own_pace(redis_url):
    """Calls of a model with a limit of its own are its emission apart, beside a common limit of ten times more."""
    fleet = models(redis_url, "100/second", small="10/second")
    (worker,) = workers = crowd("small")
    fleet.run([worker], 5, calls=[16])
    assert min(gaps(workers)) >= 100_800 - 1
    assert max(gaps(workers)) <= 100_800 + 10_080
    assert used(fleet, workers, 10, 4) > 0.9


def test_what_a_model_cannot_use_is_used_by_others(redis_url):
    """Beside a model that may use a tenth of the common limit, another uses the rest, without overlap."""
    fleet = models(redis_url, "100/second", small="10/second")
    small, large = crowd("small", "large")
    fleet.run([small, large], 8, calls=[16, 128])
    assert used(fleet, [small, large], 100, 5) >= 0.99
    assert min(gaps([small, large])) >= 10_080 - 1
    assert len(small.starts_us) >= 0.9 * 8 * 10


def test_limits_per_model_hold_for_each_by_itself(redis_url):
    """Under a limit per model, each of eight models keeps it, and together they use the common limit."""
    fleet = models(redis_url, "200/second", "30/second per model")
    workers = crowd(*(f"m{index}" for index in range(8)))
    fleet.run(workers, 6, calls=[64] * 8)
    for worker in workers:
        assert min(gaps([worker])) >= 1_008_000 / 30 - 1
    assert used(fleet, workers, 200, 4) >= 0.99
    assert min(gaps(workers)) >= 5_040 - 1


def test_many_slow_models_leave_the_common_limit_to_one_fast(redis_url):
    """Thirty models of two calls a second each cost a thirty-first nothing but what they use."""
    fleet = models(redis_url, "200/second", **{f"slow{index}": "2/second" for index in range(30)})
    slow, (fast,) = crowd(*(f"slow{index}" for index in range(30))), crowd("fast")
    fleet.run([*slow, fast], 6, calls=[4] * 30 + [128])
    assert used(fleet, [*slow, fast], 200, 3) >= 0.99
    assert min(gaps([*slow, fast])) >= 5_040 - 1


def test_a_paused_model_stops_nobody_else(redis_url):
    """While a model is paused, none of its calls start, and another model uses the whole common limit."""
    fleet = models(redis_url, "100/second", "80/second per model")
    paused, other, third = crowd("a", "b", "c")
    fleet.pause(3_000_000, "429", "model:a")
    until = fleet.us + 3_000_000
    fleet.run([paused, other, third], 4, calls=[16, 64, 64])
    assert until <= paused.starts_us[0] <= until + 600_000
    assert used(fleet, [paused, other, third], 100, 3) >= 0.99


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(seed=st.integers(0, 10**9))
def test_no_window_of_any_limit_is_exceeded(redis_url, seed):
    """Whatever groups reserve, in whatever order and at whatever times, no limit of any of them is exceeded."""
    chance = random.Random(seed)
    fleet = models(
        redis_url,
        chance.choice(("50/second", "600/minute", "20/second")),
        chance.choice(("300/hour", "15/second per model", "2000 tokens/minute per model")),
        a=chance.choice(("7/second", "120/minute")),
        b="40/hour",
    )
    fleet.wipe()
    fleet.warm()
    workers = crowd("a", "b", "c", "", "a")
    slots: dict[str, list[tuple[int, int]]] = {}
    for _ in range(40):
        worker = chance.choice(workers)
        costs = [chance.randrange(1, 80) for _ in range(chance.randrange(1, 30))]
        for start, cost in zip(fleet.reserve(worker, len(costs), costs).starts_us, costs, strict=False):
            slots.setdefault(worker.model, []).append((start, cost))
        fleet.set_time(fleet.us + chance.choice((0, 1_000, 30_000, 200_000, 2_000_000)))
    for model, own in slots.items():
        for node in layout(fleet.rules, fleet.keys, model, workers[0].traffic).nodes:
            met = own if node.owner else [slot for each in slots.values() for slot in each]
            tokens = node.clock.spec.unit is Unit.TOKENS
            units = [(start, cost if tokens else 1) for start, cost in met]
            most = node.clock.spec.amount + (max(cost for _, cost in met) if tokens and not node.clock.quota else 0)
            assert heaviest_window(units, node.clock.window_us + GUARD_US - node.clock.spec.amount) <= most


@pytest.mark.parametrize("limits", [("100/second", "1/minute per model"), ("1/minute per model",)])
def test_calls_of_slow_models_wait_for_no_other_slow_model(redis_url, limits):
    """A hundred models of a call a minute each have one at once, and another one in each minute."""
    fleet = models(redis_url, *limits)
    workers = [Worker(f"w{n % 2}|m{n}", model=f"m{n}") for n in range(100)]
    fleet.run(workers, 2.5, calls=[2] * len(workers))
    assert [len(worker.starts_us) for worker in workers] == [1] * len(workers)
    fleet.run(workers, 130, calls=[2] * len(workers))
    assert [len(worker.starts_us) for worker in workers] == [3] * len(workers)
