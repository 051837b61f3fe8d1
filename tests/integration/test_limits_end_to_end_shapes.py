"""Limits of models, in quanta, per day and by weight, from end to end: held at the server, and used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from limits_site import Site, limits_site
from local_nodes import until
from strict_api import Arrival, StrictApi, strict_api

from callmill.producer import Job
from callmill.simulator.options import EnforcerKind

WAIT_S = 20


@pytest.fixture(scope="module")
def api() -> Iterator[StrictApi]:
    """Serve an API that refills buckets, larger than the workers are told: a stall of this machine breaks no limit."""
    with strict_api(burst=12) as served:
        yield served


@pytest.fixture(scope="module")
def windows() -> Iterator[StrictApi]:
    """Serve an API that counts windows."""
    with strict_api(EnforcerKind.SLIDING) as served:
        yield served


@pytest.fixture(scope="module")
def site(redis_server, tmp_path_factory, api, windows) -> Iterator[Site]:
    """Run two workers."""
    common = [f'base_url = "{api.url}"', 'enforcer = "bucket"', "burst = 4"]
    profiles = {
        "models": [*common, 'model = "/model"', 'limits = ["60/second"]', 'models = { s = ["10/second"] }'],
        "per_model": [*common, 'model = "/model"', 'limits = ["30/second", "20/second per model"]'],
        "quanta": [f'base_url = "{windows.url}"', 'limits = ["1200/minute"]', "quantum = 1"],
        "daily": [*common, 'limits = ["100/second", "50/day"]'],
        "weighty": [*common, 'limits = ["40/second"]'],
    }
    folder = tmp_path_factory.mktemp("shapes")
    with limits_site(folder, redis_server.url, profiles, workers=2) as running:
        running.outcomes(running.submit("quanta", 1))  # what has never worked starts slowly
        yield running
        running.assert_healthy()


@pytest.fixture(autouse=True)
def fresh(api, windows) -> None:
    """Let the APIs count anew."""
    for served in (api, windows):
        served.arrivals.clear()
        served.limit()


def rate(calls: list[Arrival]) -> float:
    """Return the calls per second from the first to the last."""
    return (len(calls) - 1) / (calls[-1].at_s - calls[0].at_s)


def jobs(api: str, **counts: int) -> list[Job]:
    """Return jobs that name models in their bodies, mixed."""
    mixed = sorted((n / count, model) for model, count in counts.items() for n in range(count))
    return [Job("POST", "/chat", api=api, json={"model": model}) for _, model in mixed]


def test_limit_of_one_model(site, api):
    """A model's own limit is held at the server, and what it leaves of the common limit others use."""
    api.limit("60/second")
    batch = site.client.submit(jobs("models", s=30, f=120))
    assert all(outcome.ok for outcome in site.outcomes(batch))
    of = {model: [call for call in api.accepted() if call.model == model] for model in "sf"}
    assert api.broken == []
    assert 8.5 < rate(of["s"]) < 10.5
    assert rate(of["f"]) > 43


def test_limits_per_model_and_the_common_one(site, api):
    """With a limit for each model and one for all, none is broken at the server and the common one is used up."""
    api.limit("30/second", "20/second per model")
    batch = site.client.submit(jobs("per_model", a=60, b=40, c=20))
    outcomes = site.outcomes(batch)
    assert [(outcome.ok, outcome.attempts) for outcome in outcomes] == [(True, 1)] * 120
    assert api.broken == []
    calls = api.accepted()
    assert Counter(call.model for call in calls) == {"a": 60, "b": 40, "c": 20}
    assert rate(calls) > 22  # more than one model alone may have


def test_limit_counted_in_quanta(site, windows):
    """Where a limit per minute is counted by the second, no second holds more than its part, and it is used."""
    windows.limit("21/second")  # one more than there are: a call that this machine delays too much breaks no limit
    assert all(outcome.ok for outcome in site.outcomes(site.submit("quanta", 70)))
    assert windows.broken == []
    assert rate(windows.accepted()) > 17


def test_daily_limit_used_up(site, api):
    """When a day's calls are made the rest waits, and the reason and the time of the next call are told."""
    batch = site.submit("daily", 60)
    until(lambda: batch.progress().done == 50, WAIT_S)

    def told() -> bool:
        shown = site.limits("show", "daily")
        return shown["limited_by"] == "50/day" and 80_000 < (shown["next_start_s"] or 0) < 90_000

    until(told, WAIT_S, str(site.limits("show", "daily")))
    assert batch.progress().limited_by == "limit daily 50/day: the next call starts in 24 h"
    assert "daily 50/day: the next call starts in 24 h" in site.cli("status", batch.id)
    assert "the next starts in 24 h" in site.cli("limits", "show", "daily")
    assert len(api.arrivals) == 50
    batch.cancel()


def test_weight_counts_as_so_many_requests(site, api):
    """A call of weight 5 takes as much of a limit as five calls, at the server too."""
    api.limit("40/second")
    heavy = [Job("POST", "/x", api="weighty", weight=5, json={"weight": 5}) for _ in range(16)]
    light = [Job("POST", "/x", api="weighty", json={"weight": 1}) for _ in range(40)]
    mixed = [job for pair in zip(heavy, light[:16], strict=True) for job in pair] + light[16:]
    outcomes = site.outcomes(site.client.submit(mixed))
    assert [(outcome.ok, outcome.attempts) for outcome in outcomes] == [(True, 1)] * 56
    assert api.broken == []
    calls = api.accepted()
    assert 3.0 * 0.9 <= calls[-1].at_s - calls[0].at_s <= 3.0 * 1.8
