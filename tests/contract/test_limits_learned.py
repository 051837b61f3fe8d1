"""Limits that nobody wrote down, found by fleets in virtual time: what that costs in refusals and in time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from learning_fleet import Changing, run_fleet
from model_apis import (
    Api,
    BucketApi,
    CrowdedApi,
    FixedApi,
    PunishingApi,
    QueueingApi,
    RefusingApi,
    SlidingApi,
    StumblingApi,
)

Make = Callable[[], Api]

ONE_AND_FOUR = pytest.mark.parametrize("workers", [1, 4])


@ONE_AND_FOUR
@pytest.mark.parametrize(
    ("make", "jobs", "ideal_s"),
    [
        pytest.param(lambda: BucketApi(10, 5), 150, 14.4, id="limit_req 10/s, burst 5"),
        pytest.param(lambda: BucketApi(100, 20), 600, 5.8, id="limit_req 100/s, burst 20"),
        pytest.param(lambda: BucketApi(10, 5, latency_s=0.2), 150, 14.6, id="limit_req 10/s, 0.2 s"),
        pytest.param(lambda: SlidingApi(10, 1), 150, 15, id="sliding 10/s"),
        pytest.param(lambda: SlidingApi(100, 1), 600, 6, id="sliding 100/s"),
        pytest.param(lambda: FixedApi(10, 1), 150, 15, id="fixed 10/s"),
        pytest.param(lambda: FixedApi(50, 5), 150, 15, id="fixed 50 per 5 s"),
    ],
)
def test_a_rate_that_nobody_wrote_down_is_found_with_few_refusals(redis_url, make, jobs, ideal_s, workers):
    """Of all calls 8 % are refused at most, no job more than five times, and it takes 1.35 times the least time."""
    run = run_fleet(redis_url, make, jobs=jobs, workers=workers)
    assert len(run.taken_s) == jobs
    assert run.refused <= 0.08
    assert run.took_s <= 1.35 * ideal_s
    assert run.most_refused <= 5


@ONE_AND_FOUR
@pytest.mark.parametrize("make", [lambda: SlidingApi(10, 1, tells=True), lambda: FixedApi(50, 5, tells=True)])
def test_where_refusals_say_when_to_come_again_it_is_found_sooner(redis_url, make, workers):
    """With Retry-After, 5 % of the calls are refused at most, and it takes 1.2 times the time at an even pace."""
    run = run_fleet(redis_url, make, jobs=150, workers=workers)
    assert len(run.taken_s) == 150
    assert run.refused <= 0.05
    assert run.took_s <= 1.2 * 15


@ONE_AND_FOUR
@pytest.mark.parametrize("most", [4, 16])
def test_a_number_of_calls_at_once_that_nobody_wrote_down_is_found(redis_url, most, workers):
    """Of all calls 10 % are refused at most, and it takes one and a half times the least time."""
    run = run_fleet(redis_url, lambda: CrowdedApi(most), jobs=150, workers=workers)
    assert len(run.taken_s) == 150
    assert run.refused <= 0.1
    assert run.took_s <= 1.5 * 150 * 0.2 / most
    assert run.most_refused <= 5


@ONE_AND_FOUR
@pytest.mark.parametrize("mean_s", [0.05, 0.2])
def test_an_api_that_becomes_slow_with_load_is_kept_busy_and_no_more(redis_url, mean_s, workers):
    """Four servers with a queue: 90 % of what they can do is done, at twice the least latency at most."""
    run = run_fleet(redis_url, lambda: QueueingApi(4, mean_s), jobs=600, workers=workers)
    assert run.took_s <= 600 * mean_s / 4 / 0.9
    assert run.mean_latency_s <= 2 * mean_s


@ONE_AND_FOUR
@pytest.mark.parametrize(("jobs", "most_calls"), [(1, 12), (10, 40)])
@pytest.mark.parametrize("hint_s", [0.0, None])
def test_no_hint_removes_the_back_off(redis_url, jobs, most_calls, hint_s, workers):
    """An API that refuses for 4 s, whether it asks to come again at once or says nothing, is asked a few times only."""
    run = run_fleet(redis_url, lambda: RefusingApi(4, hint_s), jobs=jobs, workers=workers)
    assert len(run.taken_s) == jobs
    assert run.calls <= most_calls
    assert run.most_refused <= 5


def test_what_was_found_is_used_and_costs_hardly_a_refusal(redis_url):
    """Over five minutes at an unknown 50 a second, 97 % is used and 0.2 % refused, the first minute apart."""
    run = run_fleet(redis_url, lambda: BucketApi(50, 5, latency_s=0.05), jobs=10**9, runners=64, until_s=300)
    assert run.per_s(60, 300) >= 0.97 * 50
    assert sum(at > 60 for at in run.refused_s) <= 0.002 * 50 * 240


def test_windows_of_a_minute_are_found(redis_url):
    """Of an unknown 1200 calls each minute 80 % is used after the first two minutes, and 0.3 % refused."""
    run = run_fleet(redis_url, lambda: FixedApi(1200, 60, latency_s=0.05), jobs=10**9, runners=64, until_s=480)
    assert run.per_s(120, 480) >= 0.8 * 20
    assert sum(at > 120 for at in run.refused_s) <= 0.003 * 20 * 360


@ONE_AND_FOUR
@pytest.mark.parametrize("for_s", [1.5, 3.0])
def test_a_penalty_makes_no_storm(redis_url, for_s, workers):
    """Where an API refuses everything for a while after its first refusal, 3 % of the calls are refused at most."""
    run = run_fleet(redis_url, lambda: PunishingApi(BucketApi(100, 20, 0.02), for_s), jobs=1500, workers=workers)
    assert len(run.taken_s) == 1500
    assert run.refused <= 0.03
    assert run.most_refused <= 5


@pytest.mark.parametrize("runners", [1, 64])
def test_a_refusal_that_was_no_limits_slows_nothing_down_for_long(redis_url, runners):
    """An API that takes everything and refuses one call, with Retry-After, costs that second and a few more."""
    jobs = 400 * runners
    run = run_fleet(redis_url, lambda: StumblingApi(jobs // 2), jobs=jobs, runners=runners)
    assert len(run.taken_s) == jobs
    assert run.took_s <= jobs * 0.051 / runners + 6


@pytest.mark.parametrize(("rate", "within_s"), [(25, 30), (100, 180)])
def test_a_limit_that_changes_is_found_again(redis_url, rate, within_s):
    """A limit that halves is found again within 30 s, one that doubles within 3 minutes: 90 % of it is used then."""

    def make() -> Changing:
        api = BucketApi(50, 5, latency_s=0.05)
        return Changing(api, 120, lambda: setattr(api, "rate", rate))

    until_s = 120 + within_s + 20
    run = run_fleet(redis_url, make, jobs=10**9, runners=64, until_s=until_s)
    assert 0.9 * rate <= run.per_s(until_s - 20, until_s) <= 1.05 * rate


@ONE_AND_FOUR
def test_a_limit_that_is_written_down_twice_too_high_is_corrected(redis_url, workers):
    """Configured 20 a second where the API takes 10, 8 % of the calls are refused at most."""
    run = run_fleet(redis_url, lambda: BucketApi(10, 5), jobs=150, workers=workers, limits=["20/second"])
    assert len(run.taken_s) == 150
    assert run.refused <= 0.08
    assert run.took_s <= 1.35 * 14.4
