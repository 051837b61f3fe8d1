"""Key pools from end to end: the limits of each credential add up, and one that the API refuses is no loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from limits_site import Site, key_pool, limits_site
from local_nodes import until
from strict_api import Reply, StrictApi, strict_api

WAIT_S = 20
KEYS = ("secret-a", "secret-b", "secret-c")


@pytest.fixture(scope="module")
def api() -> Iterator[StrictApi]:
    """Serve an API with a bucket for each credential."""
    with strict_api(burst=5) as served:
        yield served


@pytest.fixture(scope="module")
def site(redis_server, tmp_path_factory, api) -> Iterator[Site]:
    """Run two workers with a pool of three credentials."""
    folder = tmp_path_factory.mktemp("keys")
    common = [f'base_url = "{api.url}"', 'enforcer = "bucket"', "burst = 4"]
    profiles = {
        "own": [*common, key_pool(folder, "a b c", "10/second")],
        "per_key": [*common, key_pool(folder, "a b c"), 'limits = ["10/second per key"]'],
    }
    with limits_site(folder, redis_server.url, profiles, workers=2) as running:
        yield running
        running.assert_healthy()


@pytest.fixture(autouse=True)
def fresh(api) -> None:
    """Let the API count anew."""
    api.arrivals.clear()
    api.reply = lambda _target, _key: None
    api.limit("10/second per key")


@pytest.mark.parametrize("name", ["own", "per_key"])
def test_limits_of_all_keys_add_up(site, api, name):
    """Three credentials of 10 a second make 30 a second together, and no credential's limit is ever broken."""
    outcomes = site.outcomes(site.submit(name, 90))
    assert all(outcome.ok and outcome.attempts == 1 for outcome in outcomes)
    assert api.broken == []
    calls = api.accepted()
    used = Counter(call.key for call in calls)
    assert set(used) == set(KEYS)
    assert min(used.values()) >= 25
    assert (len(calls) - 1) / (calls[-1].at_s - calls[0].at_s) > 25


def let_all_work(site, api):
    """Let each credential have worked: one that never did would be held."""
    site.outcomes(site.submit("own", 40))
    api.arrivals.clear()


def test_refused_key_is_set_aside_until_it_is_resumed(site, api):
    """A credential that gets 401 is set aside with the reason, others make its calls, and a resume brings it back."""
    let_all_work(site, api)
    api.reply = lambda _target, key: Reply(401) if key == "secret-b" else None
    outcomes = site.outcomes(site.submit("own", 40))
    assert [(outcome.ok, outcome.attempts) for outcome in outcomes] == [(True, 1)] * 40
    refused = [call for call in api.arrivals if call.status == 401]
    assert 1 <= len(refused) <= 5
    aside = {key["name"]: key for key in site.limits("show", "own")["keys"]}
    assert [name for name, key in aside.items() if key["paused_s"]] == ["b"]
    assert aside["b"]["reason"] == "401 Unauthorized"
    assert "secret-" not in site.cli("limits", "show", "own")
    api.reply = lambda _target, _key: None
    api.arrivals.clear()
    site.limits("resume", "own", "--key", "b")
    site.outcomes(site.submit("own", 40))
    assert {call.key for call in api.arrivals} == set(KEYS)
    until(lambda: not any(key["paused_s"] for key in site.limits("show", "own")["keys"]), WAIT_S)


def test_job_that_every_key_is_forbidden(site, api):
    """Jobs that are forbidden whatever the credential fail with 403, and no credential is lost for it."""
    api.reply = lambda target, _key: Reply(403) if target == "/forbidden" else None
    forbidden = site.submit("own", 12, "/forbidden")
    allowed = site.submit("own", 12)
    for outcome in site.outcomes(forbidden):
        assert (outcome.status, str(outcome.error)) == (403, "http_403: 403 Forbidden")
    assert all(outcome.ok for outcome in site.outcomes(allowed))
    assert not any(key["paused_s"] for key in site.limits("show", "own")["keys"])


def test_key_that_may_do_less_than_others_is_set_aside(site, api):
    """A credential that is forbidden calls which others are allowed is set aside with that reason; no call fails."""
    let_all_work(site, api)
    api.reply = lambda _target, key: Reply(403) if key == "secret-c" else None
    outcomes = site.outcomes(site.submit("own", 40))
    assert [(outcome.ok, outcome.attempts) for outcome in outcomes] == [(True, 1)] * 40
    aside = {key["name"]: key["reason"] for key in site.limits("show", "own")["keys"] if key["paused_s"]}
    assert list(aside) == ["c"]
    assert aside["c"].startswith("403 Forbidden, but not with ")
    site.limits("resume", "own", "--key", "c")
