"""Jobs that an API refuses for its limits again and again, with real workers: they end, and hold nobody else up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from limits_site import Site, limits_site
from local_nodes import until
from strict_api import Reply, StrictApi, strict_api

from callmill.ledger.keys import BatchKeys

WAIT_S = 20
MOST = 3
LONG_S = 600


def refusal(body: bytes, after_s: float = 0.05) -> Reply:
    """Return an answer that refuses a call and asks for a pause."""
    return Reply(429, {"Retry-After": str(after_s)}, body)


@pytest.fixture(scope="module")
def api() -> Iterator[StrictApi]:
    """Serve an API without limits of its own."""
    with strict_api() as served:
        yield served


@pytest.fixture(scope="module")
def site(redis_server, tmp_path_factory, api) -> Iterator[Site]:
    """Run two workers that serve APIs which may refuse a job few times, and another one."""
    common = [f'base_url = "{api.url}"', 'limits = ["500/second"]', 'enforcer = "bucket"', "burst = 20"]
    few = [
        *common,
        f"throttle = {{ max_refusals = {MOST} }}",
    ]  # an API for each test: pauses grow while no call is taken
    profiles = {
        "picky": few,
        "other": common,
        "given": [*few[:1], 'limits = ["500/second", "100000/day"]', *few[2:]],
        "retried": few,
    }
    with limits_site(tmp_path_factory.mktemp("refusals"), redis_server.url, profiles, workers=2) as running:
        for name in profiles:  # what has never worked starts slowly
            running.outcomes(running.submit(name, 1))
        yield running
        running.assert_healthy()


@pytest.fixture(autouse=True)
def fresh(api) -> None:
    """Let the API count anew."""
    api.arrivals.clear()
    api.reply = lambda _target, _key: None


def test_a_job_that_is_always_refused_fails_and_others_do_not(site, api):
    """It fails after as many refusals as are allowed, with the answer; jobs beside it and of another API succeed."""
    api.reply = lambda target, _key: refusal(b"too large") if target == "/large" else None
    large, small, elsewhere = (site.submit(*of) for of in (("picky", 2, "/large"), ("picky", 20), ("other", 20)))
    for outcome in site.outcomes(large):
        assert outcome.error is not None
        assert (outcome.error.code, outcome.status, outcome.body) == ("throttled", 429, b"too large")
        assert (outcome.attempts, outcome.headers) == (1, {"content-type": "application/json"})
        assert outcome.error.message.startswith(f"refused {MOST} times within ")
        assert "raise throttle.max_refusals in the profile of picky" in outcome.error.message
        assert outcome.error.message.endswith("the last time: 429 Too Many Requests")
    for batch in (small, elsewhere):
        assert [(outcome.ok, outcome.attempts) for outcome in site.outcomes(batch)] == [(True, 1)] * 20
    assert Counter(call.target for call in api.arrivals) == {"/large": 2 * MOST, "/x": 40}
    assert [batch.progress().throttled for batch in (large, small, elsewhere)] == [2 * MOST, 0, 0]


def test_refusals_count_over_a_give_back(site, api):
    """A job that was refused twice, given back and taken again fails with its third refusal."""
    answers = [refusal(b"1"), refusal(b"2", LONG_S), refusal(b"3")]
    api.reply = lambda _target, _key: answers[len(api.arrivals)]
    batch = site.submit("given", 1)
    until(lambda: len(api.arrivals) == MOST - 1, WAIT_S)
    until(lambda: site.limits("show", "given")["paused_s"] > LONG_S / 2, WAIT_S)
    batch.pause()
    until(lambda: site.redis.hget(BatchKeys(batch.id).meta, "leased") == "0", WAIT_S, "given back")
    batch.resume()
    site.limits("resume", "given")
    (outcome,) = site.outcomes(batch)
    assert outcome.error is not None
    assert (outcome.error.code, outcome.status, outcome.body) == ("throttled", 429, b"3")
    assert len(api.arrivals) == MOST


def test_failed_with_throttled_is_a_cause_to_retry(site, api):
    """`callmill failures` counts it as a cause, and `retry --where code=throttled` begins to count refusals anew."""
    answers = [*[refusal(b"")] * (MOST + 1), Reply()]
    api.reply = lambda _target, _key: answers[len(api.arrivals)]
    batch = site.submit("retried", 1)
    assert [outcome.ok for outcome in site.outcomes(batch)] == [False]
    assert "throttled" in site.cli("failures", batch.id)
    site.cli("retry", batch.id, "--where", "code=throttled")
    until(lambda: batch.progress().succeeded == 1, WAIT_S)
    assert len(api.arrivals) == MOST + 2
