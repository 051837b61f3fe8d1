"""Properties of the number of workers wanted, for any load."""

from __future__ import annotations

import math

from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from callmill.overview.scaling_window import ScalingWindow
from callmill.overview.workers_wanted import ApiLoad, FleetLoad, ScalingRules, workers_wanted

NUMBERS = st.floats(0, 1e7)
APIS = st.builds(
    ApiLoad,
    api=st.sampled_from(["a", "b"]),
    waiting=NUMBERS,
    in_flight=st.integers(0, 100_000),
    held=st.booleans(),
    calls_per_s=st.floats(0, 1e5),
    latency_s=st.none() | st.floats(1e-4, 600),
    limit_per_s=st.none() | st.floats(1e-3, 1e5),
    calls_at_once=st.none() | st.integers(1, 10_000),
    room=st.none() | st.floats(1, 1000),
    stopped=st.sampled_from(["", "paused"]),
    down=st.sampled_from(["", "down"]),
)
LOADS = st.builds(
    FleetLoad,
    apis=st.lists(APIS, max_size=5),
    workers=st.integers(0, 200),
    calls_per_s=st.floats(0, 1e5),
    cpu_us_per_call=st.none() | st.floats(1, 1e5),
    upkeep=st.sampled_from(["", "something"]),
    hold=st.sampled_from(["", "full"]),
)
RULES = ScalingRules()

JUST_OVER = FleetLoad(apis=[ApiLoad(api="a", calls_per_s=1.0)], workers=1)
"""Its last call is over, and the mean rate does not know it yet."""

MORE_THAN_WORKERS = FleetLoad(
    apis=[ApiLoad(api="a", waiting=1.0), ApiLoad(api="b", waiting=1.0, in_flight=2, calls_per_s=1.0, room=1.0)]
)
"""Calls under way that the workers counted a moment later have no room for."""


@given(load=LOADS, least=st.integers(0, 5), more=st.none() | st.integers(0, 50))
def test_bounds_and_words(load, least, more):
    """The number is between the least and the most, and there is a reason for it and for each API."""
    most = None if more is None else least + more
    answer = workers_wanted(load, ScalingRules(least=least, most=most))
    assert least <= answer.wanted <= (math.inf if most is None else most)
    assert answer.why
    assert all(api.why for api in answer.apis)


@given(LOADS)
@example(JUST_OVER)
def test_zero_only_without_work(load):
    """Nobody is wanted exactly when no API that may be called has work, none is under way, and no upkeep waits."""
    work = any(api.in_flight or (not api.stopped and (api.waiting or api.held)) for api in load.apis)
    assert (workers_wanted(load, RULES).wanted == 0) == (not work and not load.upkeep)


@given(LOADS)
def test_never_more_than_limits_can_use(load):
    """Beyond what runs, limits bound the number: by the CPU and the room that calls at all these rates take."""
    limited = [api for api in load.apis if api.limit_per_s is not None and api.latency_s is not None]
    load = replace(load, apis=limited)
    answer = workers_wanted(load, RULES)
    cpu = sum(api.limit_per_s for api in limited) * answer.cpu_us_per_call / (RULES.core_share * 1e6)
    room = max((api.limit_per_s * api.latency_s / api.room for api in limited if api.room), default=0.0)
    in_use = max((api.in_flight / api.room for api in limited if api.room), default=0.0)
    assert answer.wanted <= max(1, math.ceil(cpu), math.ceil(room), min(load.workers, math.ceil(in_use)))


@given(LOADS)
def test_never_more_than_runs_without_backlog(load):
    """What is under way alone never adds a process beyond the first."""
    idle = replace(load, apis=[replace(api, waiting=0.0) for api in load.apis])
    assert workers_wanted(idle, RULES).wanted <= max(1, load.workers)


@given(LOADS, st.floats(1, 100))
@example(MORE_THAN_WORKERS, 31.0)
def test_more_backlog_never_wants_fewer(load, factor):
    """More that waits never makes the number smaller."""
    more = replace(load, apis=[replace(api, waiting=api.waiting * factor) for api in load.apis])
    assert workers_wanted(more, RULES).wanted >= workers_wanted(load, RULES).wanted


@given(LOADS)
def test_stopped_apis_begin_nothing(load):
    """What waits of APIs that cannot be called changes nothing."""
    stopped = [api for api in load.apis if api.stopped]
    without = [replace(api, waiting=0.0) if api in stopped else api for api in load.apis]
    assert workers_wanted(load, RULES).wanted == workers_wanted(replace(load, apis=without), RULES).wanted


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 20)), min_size=1, max_size=60))
def test_window_is_the_highest_of_the_last_minute(steps):
    """The number that counts is the highest that was wanted within the window, whatever came before."""
    window, now_s, seen = ScalingWindow(60), 0.0, []
    for after_s, number in steps:
        now_s += after_s
        seen.append((now_s, number))
        assert window.steady(number, now_s, running=0) == max(n for at, n in seen if at > now_s - 60)
