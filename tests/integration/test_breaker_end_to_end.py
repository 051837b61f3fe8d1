"""APIs that are down, sick, or served by another one meanwhile, with real workers."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from limits_site import Site, key_pool, limits_site
from local_nodes import until
from strict_api import Reply, StrictApi, strict_api

from callmill.producer import Job

WAIT_S = 20
DOWN = Reply(503)
BREAKER = "breaker = { probe = 0.2, cap = 0.4, window = 1 }"
WATCHED_S = 1.5


@pytest.fixture(scope="module")
def apis() -> Iterator[tuple[StrictApi, StrictApi]]:
    """Serve two APIs."""
    with strict_api() as first, strict_api() as second:
        yield first, second


@pytest.fixture(scope="module")
def site(redis_server, tmp_path_factory, apis) -> Iterator[Site]:
    """Run two workers, each with up to 50 calls of an API in flight."""
    folder = tmp_path_factory.mktemp("breaker")
    first, second = apis
    common = [f'base_url = "{first.url}"', "max_connections = 50", "retry = { attempts = 2, base = 0.01, cap = 0.05 }"]
    often = [common[0], common[1], "retry = { attempts = 100, base = 0.01, cap = 0.05 }"]
    profiles = {
        "alone": [*common, BREAKER],
        # All attempts of a job within the second that a streak takes would be too soon; waits are drawn, from 0 on.
        "few": [*common[:2], "retry = { base = 2 }", BREAKER],
        "slow": [*common, BREAKER, 'limits = ["3/second"]', 'enforcer = "bucket"', "burst = 2"],
        "sick": [*often, "breaker = false"],
        "main": [*common, BREAKER, 'fallback = "spare"', key_pool(folder, "main")],
        "moving": [*common, BREAKER, 'fallback = "spare"'],
        "parked": [*common, 'fallback = "spare"', 'limits = ["100/second"]'],
        "spare": [f'base_url = "{second.url}/spare"', "max_connections = 50", key_pool(folder, "spare")],
    }
    with limits_site(folder, redis_server.url, profiles, workers=2) as running:
        yield running
        running.assert_healthy()


@pytest.fixture(autouse=True)
def fresh(apis) -> None:
    """Let the APIs be up and count anew."""
    for api in apis:
        api.arrivals.clear()
        api.reply = lambda _target, _key: None


def states(site: Site, api: str) -> list[str]:
    """Return the breaker's state in each worker."""
    return [row["breaker"] for row in site.limits() if row["api"] == api]


def test_jobs_wait_while_their_api_is_down(site, apis):
    """No job fails and no attempt is spent, many jobs or few, slow or not; few probes go out; all succeed at last."""
    api, sizes = apis[0], {"alone": 300, "few": 3, "slow": 8}
    api.reply = lambda _target, _key: DOWN
    batches = {name: site.submit(name, jobs, url=f"/{name}") for name, jobs in sizes.items()}
    for name in sizes:
        until(lambda name=name: states(site, name) in (["open"], ["half-open"]), WAIT_S, f"{name} open")
    began_s = time.monotonic()
    time.sleep(WATCHED_S)
    probes = [arrival.target for arrival in list(api.arrivals) if arrival.at_s >= began_s]
    for name, batch in batches.items():
        assert 1 <= probes.count(f"/{name}") <= 2 + WATCHED_S / (0.8 * 0.2)
        assert f"{name} is down, tried again" in batch.progress().limited_by
        assert batch.progress().failed == 0
    api.reply = lambda _target, _key: None
    for name, batch in batches.items():
        assert [(outcome.ok, outcome.attempts) for outcome in site.outcomes(batch)] == [(True, 1)] * sizes[name]
        until(lambda name=name: states(site, name) == ["closed"], WAIT_S, f"{name} closed")


def test_retries_keep_the_budget(site, apis):
    """Of an API that cannot serve half of its calls, a fifth of what it gets are retries at most, and a few."""
    api = apis[0]
    calls = iter(range(1_000_000))
    api.reply = lambda _target, _key: DOWN if next(calls) % 2 else None
    batch = site.client.submit([Job("GET", f"/{n}", api="sick") for n in range(4000)])
    until(lambda: len(api.arrivals) > 3000, WAIT_S, "3000 calls")
    seen = [arrival.target for arrival in list(api.arrivals)]
    retries = len(seen) - len(set(seen))
    assert 0 < retries <= 0.2 * len(seen) + 10
    batch.cancel()
    assert batch.progress().failed == 0


def test_another_api_serves_meanwhile(site, apis):
    """Calls of an API that is down go to its fallback, with the fallback's URL and credential, and come back later."""
    first, second = apis
    first.reply = lambda _target, _key: DOWN
    batch = site.submit("main", 200, url=f"{first.url}/path?a=b")
    assert all(outcome.ok and outcome.attempts == 1 for outcome in site.outcomes(batch))
    assert {(call.target, call.key) for call in second.arrivals} == {("/spare/path?a=b", "secret-spare")}
    assert len(second.accepted()) == 200
    assert {call.key for call in first.arrivals if call.target == "/path?a=b"} == {"secret-main"}
    first.reply = lambda _target, _key: None
    until(lambda: _comes_back(site, first), WAIT_S, "calls of its own again")


def test_fallback_is_told_nothing_of_a_redirect(site, apis):
    """A call that was redirected goes to the fallback by its own URL: the other one is between it and its API."""
    first, second = apis
    moved = Reply(307, {"Location": f"{first.url}/elsewhere?ticket=for-you-alone"})
    redirected: list[str] = []

    def reply(target: str, _key: str) -> Reply:
        if target.startswith("/elsewhere"):
            redirected.append(target)
        return DOWN if redirected else moved

    first.reply = reply
    assert all(outcome.ok for outcome in site.outcomes(site.submit("moving", 200, url="/own")))
    assert redirected
    assert {call.target for call in second.arrivals} == {"/spare/own"}


def test_another_api_serves_while_one_is_paused_for_long(site, apis):
    """Calls of an API that is paused for longer than some seconds go to its fallback, and those that waited, too."""
    first, second = apis
    first.reply = lambda _target, _key: Reply(429, {"Retry-After": "3600"})
    assert all(outcome.ok for outcome in site.outcomes(site.submit("parked", 100)))
    assert len(second.accepted()) == 100
    assert first.accepted() == []
    site.limits("resume", "parked")


def _comes_back(site: Site, api: StrictApi) -> bool:
    site.outcomes(site.submit("main", 5))
    return len(api.accepted()) >= 5
