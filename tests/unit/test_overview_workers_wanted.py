"""How many workers are wanted: what it follows from, and what it says of it."""

from __future__ import annotations

import pytest

from callmill.overview.scaling_window import ScalingWindow
from callmill.overview.workers_wanted import ApiLoad, FleetLoad, ScalingRules, workers_wanted

RULES = ScalingRules()
MEASURED = {"latency_s": 0.2, "room": 500.0}


def wanted(*apis, rules=RULES, **fleet):
    """Return what is wanted for these APIs."""
    return workers_wanted(FleetLoad(apis=apis, **fleet), rules)


@pytest.mark.parametrize(
    ("load", "number", "why"),
    [
        ({}, 0, "nothing to do"),
        ({"waiting": 10}, 1, "backlog of openai, 10 jobs, needs 1"),
        ({"waiting": 1e6}, 14, "backlog of openai, 1,000,000 jobs, needs 14"),
        ({"waiting": 1e6, "latency_s": 0.1}, 9, "backlog of openai, 1,000,000 jobs, needs 9"),
        ({"waiting": 1e6, "limit_per_s": 500 / 60, "limit": "500/minute"}, 1, "limit of openai, 500/minute, needs 1"),
        ({"waiting": 1e6, "limit_per_s": 6000.0, "limit": "6000/second"}, 3, "limit of openai, 6000/second, needs 3"),
        ({"waiting": 1e6, "calls_at_once": 1500}, 3, "limit of openai, 1500 concurrent at 0.2 s, needs 3"),
        ({"waiting": 1e6, "latency_s": None}, 1, "backlog of openai, 1,000,000 jobs, not measured yet, needs 1"),
        ({"waiting": 1e6, "stopped": "paused until resumed: money"}, 0, "openai is paused until resumed: money"),
        ({"waiting": 1e6, "in_flight": 3, "stopped": "paused"}, 1, "the work of openai under way"),
        ({"waiting": 1e6, "down": "openai is down"}, 1, "openai: openai is down"),
        ({"held": True}, 1, "the chunks that workers have"),
        ({"waiting": 1e6, "takeable": False}, 1, "the chunks that workers have"),
        ({"waiting": 200, "latency_s": 60.0, "room": 50.0}, 4, "backlog of openai, 200 jobs, needs 4"),
    ],
)
def test_one_api(load, number, why):
    """The tighter of what waits and what the limit grants decides, in CPU or in calls at once, and it is said which."""
    answer = wanted(ApiLoad(api="openai", **MEASURED | load))
    assert (answer.wanted, why in answer.why) == (number, True), answer.why


def test_apis_share_processes():
    """Two APIs that need a third of a process each need one; what each needs is told."""
    third = {"waiting": 1e6, "limit_per_s": 4000 / 3, "limit": "80000/minute"} | MEASURED
    answer = wanted(ApiLoad(api="a", **third), ApiLoad(api="b", **third))
    assert answer.wanted == 1
    assert [round(api.processes, 2) for api in answer.apis] == [0.53, 0.53]
    assert answer.why.endswith("needs 1, with 1 more API")
    assert answer.apis[0].why == "limit 80000/minute"


def test_what_runs_keeps_workers_and_adds_none():
    """A fleet at its full load is no reason for more of it, one at half its load is too large."""
    busy = ApiLoad(api="a", in_flight=800, calls_per_s=4000.0, **MEASURED)
    assert wanted(busy, workers=1).wanted == 1
    assert wanted(busy, workers=2).wanted == 2
    assert wanted(busy, workers=10).wanted == 2


def test_who_has_its_limit_already_gets_no_more():
    """A fleet that makes all the calls that the limit grants is not enlarged, whatever a call seems to cost."""
    has_it = ApiLoad(api="a", waiting=1e6, calls_per_s=980.0, limit_per_s=1000.0, limit="1000/second", **MEASURED)
    answer = wanted(has_it, workers=2, calls_per_s=980.0, cpu_us_per_call=4000.0)
    assert (answer.wanted, answer.why) == (2, "limit of a, 1000/second, needs 2")


def test_growth_of_one_leaves_the_others_their_part():
    """What one API needs more comes on top of what the others use now."""
    busy = ApiLoad(api="a", in_flight=800, calls_per_s=10_000.0, latency_s=0.1, room=500.0)
    grows = ApiLoad(api="b", waiting=3e5, latency_s=0.01, room=500.0)
    assert wanted(busy, grows, workers=2, calls_per_s=10_000.0, cpu_us_per_call=200.0).wanted == 2 + 3


def test_measured_cpu_counts_as_far_as_calls_tell_of_it():
    """A costly call needs more processes; what a call seems to cost while hardly any is made says little."""
    waits = ApiLoad(api="a", waiting=1e6, limit_per_s=1000.0, limit="1000/second", **MEASURED)
    assert wanted(waits, workers=1, calls_per_s=300.0, cpu_us_per_call=2800.0).wanted == 4
    assert wanted(waits, workers=1, calls_per_s=1.0, cpu_us_per_call=10_000.0).wanted == 1


def test_bounds_hold():
    """Never fewer than the least, never more than the most, and the reason says so."""
    waits = ApiLoad(api="a", waiting=1e6, **MEASURED)
    few = wanted(waits, rules=ScalingRules(most=3))
    assert (few.wanted, few.why) == (3, "backlog of a, 1,000,000 jobs, needs 14; 3 at most")
    assert wanted(rules=ScalingRules(least=2)).why == "nothing to do; 2 at least"


def test_workers_that_hold_get_no_help():
    """While workers take nothing, because Redis is full, no further ones are wanted."""
    waits = ApiLoad(api="a", waiting=1e6, **MEASURED)
    answer = wanted(waits, workers=2, hold="Redis is full")
    assert (answer.wanted, answer.why) == (2, "workers take nothing new: Redis is full")


def test_upkeep_wants_one():
    """Where only a worker can do what is to be done, one is wanted."""
    answer = wanted(upkeep="a batch's deadline is over")
    assert (answer.wanted, answer.why) == (1, "a batch's deadline is over")


def test_window_goes_up_at_once_and_down_late():
    """More is taken at once; fewer when fewer were enough for a whole window, then the highest of it."""
    window = ScalingWindow(60)
    looks = [(0, 2), (10, 5), (20, 1), (60, 3), (71, 1), (119, 1), (121, 1)]
    assert [window.steady(number, at, running=0) for at, number in looks] == [2, 5, 5, 5, 3, 3, 1]


def test_window_begins_with_what_runs():
    """Who has just begun to look ends nobody: what runs counts as wanted for a window."""
    window = ScalingWindow(60)
    assert [window.steady(1, at, running=4) for at in (0, 59, 61)] == [4, 4, 1]
    assert ScalingWindow(0).steady(1, 0, running=4) == 1
