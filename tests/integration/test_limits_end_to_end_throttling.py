"""An API that says no, from end to end: storms of 429, refusals in other words, quotas that are spent for days."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise

import pytest
from limits_site import Site, limits_site
from local_nodes import until
from strict_api import Arrival, Reply, StrictApi, strict_api

WAIT_S = 20
SPENT = Reply(429, {"Retry-After": str(2 * 86_400)}, b'{"error": {"code": "insufficient_quota"}}')
UNDER_WAY_S = 0.25
"""Calls that had started when the API said no may arrive so much later, on a busy machine."""

WAVE_S = 0.2
"""Calls that arrive within this time after the first refused one were refused with it."""

BUSY_S = 0.8
"""What a busy machine may add to a pause: less than the longest one that is told apart."""

THROTTLE = 'throttle = { statuses = [200, 403, 503, 529], rate = { "/error/code" = ["rate_limited"] } }'


@pytest.fixture(scope="module")
def api() -> Iterator[StrictApi]:
    """Serve an API without limits of its own."""
    with strict_api() as served:
        yield served


@pytest.fixture(scope="module")
def site(redis_server, tmp_path_factory, api) -> Iterator[Site]:
    """Run two workers, each with up to 100 calls in flight."""
    common = [f'base_url = "{api.url}"', "max_connections = 101"]  # one is left to other tenants
    paced = [*common, 'enforcer = "bucket"', "burst = 20"]
    profiles = {
        "free": [*common, 'limits = ["none"]'],
        "paced": [*paced, 'limits = ["400/second"]'],
        "worded": [*paced, 'limits = ["200/second"]', THROTTLE],
        "quota": [*paced, 'limits = ["200/second", "1000/day"]'],
        "other": [*paced, 'limits = ["200/second"]'],
    }
    folder = tmp_path_factory.mktemp("throttling")
    with limits_site(folder, redis_server.url, profiles, workers=2) as running:
        for name in profiles:  # what has never worked starts slowly
            running.outcomes(running.submit(name, 1))
        yield running
        running.assert_healthy()


@pytest.fixture(autouse=True)
def fresh(api) -> None:
    """Let the API count anew."""
    api.arrivals.clear()
    api.reply = lambda _target, _key: None


def between(calls: list[Arrival], from_s: float, to_s: float) -> list[Arrival]:
    """Return the calls that arrived between two times."""
    return [call for call in calls if from_s < call.at_s < to_s]


def test_storm_with_retry_after_is_one_pause_of_the_fleet(site, api):
    """200 calls of two workers refused at once with Retry-After make one pause of that length and spend no attempt."""
    api.storm(200, Reply(429, {"Retry-After": "1"}))
    batch = site.submit("free", 500)
    assert api.storm_over.wait(WAIT_S)
    outcomes = site.outcomes(batch)
    assert [(outcome.ok, outcome.attempts) for outcome in outcomes] == [(True, 1)] * 500
    assert between(api.arrivals, api.storm_at_s + UNDER_WAY_S, api.storm_at_s + 0.99) == []
    assert len(between(api.arrivals, api.storm_at_s, api.storm_at_s + 2.5)) >= 500
    assert len(api.arrivals) == 700
    assert batch.progress().throttled == 200


def test_pauses_grow_with_events_not_with_answers(site, api):
    """Calls refused at once without Retry-After are one event; each doubles the pause, and few calls try its end."""
    waves: list[list[float]] = []

    def reply(_target: str, _key: str) -> Reply | None:
        now = time.monotonic()
        if not waves or now > waves[-1][0] + WAVE_S:
            if len(waves) == 3:
                return None
            waves.append([])
        waves[-1].append(now)
        return Reply(429)

    api.reply = reply
    outcomes = site.outcomes(site.submit("free", 400))
    assert [(outcome.ok, outcome.attempts) for outcome in outcomes] == [(True, 1)] * 400
    assert max(map(len, waves[1:])) <= 2
    begins = [wave[0] for wave in waves]
    begins.append(min(call.at_s for call in api.arrivals if call.status == 200))
    pauses_s = [after - before for before, after in pairwise(begins)]
    for pause_s, expected_s in zip(pauses_s, (0.25, 0.5, 1.0), strict=True):
        assert expected_s - 0.01 <= pause_s <= expected_s + BUSY_S


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (Reply(403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Limit": "60"}), "403 Forbidden: remaining 0"),
        (Reply(503, {"Retry-After": "1"}), "503 Service Unavailable"),
        (Reply(529, {"Retry-After": "1"}), "529 Overloaded"),
        (Reply(200, {"Retry-After": "1"}, b'{"error": {"code": "rate_limited"}}'), "200 OK: rate_limited"),
    ],
    ids=["403", "503", "529", "200"],
)
def test_refusals_in_other_words(site, api, refusal, reason):
    """What the profile calls a refusal pauses the API with its words, and costs the call no attempt."""
    refused: list[str] = []

    def reply(target: str, _key: str) -> Reply | None:
        if target == "/refused" and not refused:
            refused.append(target)
            return refusal
        return None

    api.reply = reply
    batch = site.submit("worded", 1, "/refused")
    until(lambda: refused, WAIT_S)
    if "Retry-After" in refusal.headers:
        until(lambda: reason in (site.limits("show", "worded")["pause_reason"] or ""), WAIT_S)
    (outcome,) = site.outcomes(batch)
    assert (outcome.status, outcome.attempts, batch.progress().throttled) == (200, 1, 1)
    first, second = [call.at_s for call in api.arrivals]
    assert second - first >= (0.99 if "Retry-After" in refusal.headers else 0.24)


@pytest.mark.parametrize(
    "spent",
    [
        SPENT,
        Reply(429, {}, b'{"error": {"code": "insufficient_quota"}}'),
        Reply(429, {"X-RateLimit-Limit": "1000", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "172800"}),
    ],
    ids=["retry-after", "body", "reset"],
)
def test_spent_quota_parks_the_api_alone(site, api, spent):
    """A quota that is spent for days stops its API and no other, for an hour at first, and tells why until a resume."""
    api.reply = lambda target, _key: spent if target == "/spent" else None
    batch = site.submit("quota", 20, "/spent")
    until(lambda: site.limits("show", "quota")["paused_s"] > 0, WAIT_S)
    assert all(outcome.ok for outcome in site.outcomes(site.submit("other", 40)))
    shown = site.limits("show", "quota")
    assert 3540 < shown["paused_s"] <= 3602  # so long one answer alone is believed
    assert shown["pause_reason"].startswith("429 Too Many Requests: ")
    until(lambda: batch.progress().limited_by.endswith(f": {shown['pause_reason']}"), WAIT_S)
    assert "is paused for" in site.cli("status", batch.id)
    assert batch.progress().done == 0
    api.reply = lambda _target, _key: None
    began_s = time.monotonic()
    assert site.limits("resume", "quota")["paused_s"] == 0
    assert all((outcome.ok, outcome.attempts) == (True, 1) for outcome in site.outcomes(batch))
    assert time.monotonic() - began_s < 10
