"""Held APIs in a running fleet: pools, keys that are revoked, jobs that are refused whatever the key, fallbacks."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from limits_site import Site, key_pool, limits_site
from local_nodes import until
from strict_api import Reply, StrictApi, strict_api

from callmill.producer import Job, Outcome

WAIT_S = 20
JOBS = 500
MOST_CALLS = 50
IN_FLIGHT = 10


@pytest.fixture(scope="module")
def api() -> Iterator[StrictApi]:
    """Serve an API without limits."""
    with strict_api() as served:
        yield served


@pytest.fixture(scope="module")
def site(redis_server, tmp_path_factory, api) -> Iterator[Site]:
    """Run two workers, each with up to 10 calls of an API in flight."""
    folder = tmp_path_factory.mktemp("holds")
    common = [f'base_url = "{api.url}"', f"max_connections = {IN_FLIGHT}", "retry = { base = 0.01, cap = 0.05 }"]
    single = [*common, key_pool(folder, "one")]
    profiles = {
        "one_wrong": [*common, key_pool(folder, "good bad")],
        "all_wrong": [*common, key_pool(folder, "bad worse")],
        "one_less": [*common, key_pool(folder, "good less")],
        "revoked": single,
        "private": single,
        "unpaid": single,
        "all_missing": single,
        "main": [*single, 'fallback = "spare"'],
        "spare": [f'base_url = "{api.url}/spare"', key_pool(folder, "good")],
    }
    with limits_site(folder, redis_server.url, profiles, workers=2) as running:
        yield running
        running.assert_healthy()


@pytest.fixture(autouse=True)
def fresh(api) -> None:
    """Let the API accept everything, and count anew."""
    api.arrivals.clear()
    api.reply = lambda _target, _key: None


def held(site: Site, name: str) -> str:
    """Return why an API is held; empty where it is not."""
    return site.limits("show", name)["held"]


def test_pool_key_that_never_worked_is_held_and_the_others_go_on(site, api):
    """A wrong key of a pool costs few calls and no job; it waits for its secret, or for a command."""
    api.reply = lambda _target, key: Reply(401) if key == "secret-bad" else None
    outcomes = site.outcomes(site.submit("one_wrong", JOBS))
    assert [(outcome.ok, outcome.attempts) for outcome in outcomes] == [(True, 1)] * JOBS
    refused = Counter(call.key for call in api.arrivals if call.status == 401)
    assert 3 <= refused["secret-bad"] <= MOST_CALLS / 2

    def keys_are() -> dict[str, dict[str, Any]]:
        return {key["name"]: key for key in site.limits("show", "one_wrong")["keys"]}

    until(lambda: keys_are()["bad"]["paused_s"] is None, WAIT_S, "a worker has told of it")
    keys = keys_are()
    assert (keys["bad"]["paused_s"], keys["good"]["paused_s"]) == (None, 0)
    assert keys["bad"]["reason"].endswith("/secret-bad")
    assert " x 401 Unauthorized: check " in keys["bad"]["reason"]
    assert not held(site, "one_wrong")
    api.reply = lambda _target, _key: None
    assert "was held: " in site.cli("limits", "resume", "one_wrong", "--key", "bad")
    api.arrivals.clear()

    def both_keys_are_used() -> bool:
        site.outcomes(site.submit("one_wrong", JOBS))
        return {call.key for call in api.arrivals} == {"secret-good", "secret-bad"}

    until(both_keys_are_used, WAIT_S, "a worker hears of it within a second, and 500 jobs may take less")


def failed_before(released_s: float, outcomes: list[Outcome]) -> int:
    """Return how many of all jobs failed: some, and none whose call began after the release.

    Workers record a failure a moment after its answer: what is recorded when the API is held may not be all.
    """
    failed = [outcome for outcome in outcomes if not outcome.ok]
    assert len(outcomes) == JOBS
    assert failed
    assert all(outcome.started_at < released_s for outcome in failed)
    return len(failed)


def test_pool_without_a_key_that_works_is_held(site, api):
    """With every key refused, a handful of jobs fails, the API is held with all causes, and a command releases it."""
    api.reply = lambda _target, _key: Reply(401)
    batch = site.submit("all_wrong", JOBS)
    until(lambda: held(site, "all_wrong"), WAIT_S, "held")
    line = held(site, "all_wrong")
    assert line.startswith("all_wrong is held: ")
    assert "secret-bad" in line
    assert "secret-worse" in line
    until(lambda: batch.progress().limited_by.startswith("all_wrong is held"), WAIT_S, "shown")
    assert len(api.arrivals) <= MOST_CALLS
    api.reply = lambda _target, _key: None
    released_s = time.time()
    site.cli("limits", "resume", "all_wrong")
    assert failed_before(released_s, site.outcomes(batch)) <= MOST_CALLS / 2
    until(lambda: not held(site, "all_wrong"), WAIT_S, "released")


def test_pool_key_that_never_was_allowed_what_others_were_is_held(site, api):
    """A key that gets 403 from the first call on, while another is allowed the same calls, is held; no job fails."""
    api.reply = lambda _target, key: Reply(403) if key == "secret-less" else None

    def key_after_more_jobs(name: str) -> dict[str, Any]:
        """500 jobs may be over before the workers have told of what they met."""
        assert all(outcome.ok for outcome in site.outcomes(site.submit("one_less", JOBS)))
        return next(key for key in site.limits("show", "one_less")["keys"] if key["name"] == name)

    until(lambda: key_after_more_jobs("less")["paused_s"] is None, WAIT_S, "held")
    assert " x 403 Forbidden: check " in key_after_more_jobs("less")["reason"]


def test_key_that_is_revoked_is_held(site, api):
    """A key that has worked and is refused from now on is held after some twenty jobs of each worker."""
    assert all(outcome.ok for outcome in site.outcomes(site.submit("revoked", 50)))
    api.reply = lambda _target, _key: Reply(401)
    api.arrivals.clear()
    batch = site.submit("revoked", JOBS)
    until(lambda: held(site, "revoked"), WAIT_S, "held")
    api.reply = lambda _target, _key: None
    refused = len(api.arrivals)
    assert 20 <= refused <= 2 * (20 + IN_FLIGHT)
    released_s = time.time()
    site.cli("limits", "resume", "revoked")
    assert failed_before(released_s, site.outcomes(batch)) <= refused


@pytest.mark.parametrize("status", [401, 403])
def test_jobs_that_are_refused_whatever_the_key_hold_nothing(site, api, status):
    """Among jobs that succeed, those that are always refused fail with their answer; the API goes on."""
    api.reply = lambda target, _key: Reply(status) if target == "/private" else None
    assert all(outcome.ok for outcome in site.outcomes(site.submit("private", 5)))
    jobs = [Job("GET", "/private" if n % 3 == 0 else "/x", api="private", id=str(n)) for n in range(3 * 40)]
    outcomes = site.outcomes(site.client.submit(jobs))
    assert Counter(outcome.status for outcome in outcomes) == {status: 40, 200: 80}
    assert not held(site, "private")


def test_bill_that_is_not_paid_holds(site, api):
    """402 is a refusal of the account: held, and the line says what to look at."""
    api.reply = lambda _target, _key: Reply(402)
    batch = site.submit("unpaid", JOBS)
    until(lambda: held(site, "unpaid"), WAIT_S, "held")
    assert held(site, "unpaid").endswith(" x 402 Payment Required: check the account's plan and billing")
    assert len(api.arrivals) <= MOST_CALLS
    batch.cancel()


def test_answers_that_prove_nothing_hold_nothing(site, api):
    """An API that answers every job with 404 is called at full speed, and each job fails with its answer."""
    api.reply = lambda _target, _key: Reply(404)
    outcomes = site.outcomes(site.submit("all_missing", JOBS))
    assert Counter(outcome.status for outcome in outcomes) == {404: JOBS}
    assert not held(site, "all_missing")


def test_calls_of_a_held_api_go_to_its_fallback(site, api):
    """While an API is held, its fallback makes its calls; no further job fails."""
    api.reply = lambda target, _key: None if target.startswith("/spare") else Reply(401)
    outcomes = site.outcomes(site.submit("main", JOBS))
    failed = sum(not outcome.ok for outcome in outcomes)
    assert failed <= MOST_CALLS / 2
    assert held(site, "main")
    assert sum(call.target.startswith("/spare") for call in api.arrivals) == JOBS - failed
