"""Limits changed, paused and resumed under load: four workers follow within a second, the API sees it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from limits_site import Site, limits_site
from local_nodes import until
from strict_api import StrictApi, strict_api

from callmill.config.limit_spec import parse_limit
from callmill.simulator.enforcers import make_enforcer
from callmill.simulator.options import EnforcerKind

WORKERS, BURST = 4, 10
WAIT_S = 20
CHANGED_WITHIN_S = 1.0
BUSY_S = 0.5
"""What a busy machine may add."""


@pytest.fixture(scope="module")
def api() -> Iterator[StrictApi]:
    """Serve an API without limits of its own."""
    with strict_api() as served:
        yield served


@pytest.fixture(scope="module")
def site(redis_server, tmp_path_factory, api) -> Iterator[Site]:
    """Run four workers that make 100 calls a second as long as the test lasts."""
    profile = [f'base_url = "{api.url}"', 'enforcer = "bucket"', f"burst = {BURST}", 'limits = ["100/second"]']
    folder = tmp_path_factory.mktemp("control")
    with limits_site(folder, redis_server.url, {"crm": profile}, workers=WORKERS) as running:
        load = running.submit("crm", 6000)
        until(lambda: len(api.arrivals) > 50, WAIT_S)
        yield running
        load.cancel()
        running.assert_healthy()


def calls_between(api: StrictApi, from_s: float, to_s: float) -> int:
    """Count the calls between two times."""
    return sum(from_s <= call.at_s < to_s for call in api.arrivals)


def wait_until_s(at_s: float) -> None:
    """Wait for a moment to pass: what is measured here is what happens until then."""
    until(lambda: time.monotonic() >= at_s, WAIT_S)


@pytest.mark.parametrize("deaf", [False, True], ids=["told", "message lost"])
def test_limits_set_under_load_hold_within_a_second(site, api, deaf):
    """Other limits slow all workers down within a second, even where the message was lost, and the reset speeds up."""
    if deaf:
        site.redis.client_kill_filter(_type="pubsub")
    began_s = time.monotonic()
    changed = site.limits("set", "crm", "300/minute")
    set_s = time.monotonic()
    assert (changed["workers"], changed["adopted"]) == (WORKERS, WORKERS)
    slow_from_s = began_s + CHANGED_WITHIN_S + BUSY_S
    wait_until_s(max(set_s, slow_from_s) + 2.0)
    bucket = make_enforcer(parse_limit("300/minute"), EnforcerKind.BUCKET, BURST)
    late = [call for call in api.arrivals if slow_from_s <= call.at_s]
    assert 2.0 * 5 - 4 <= len([call for call in late if call.at_s < slow_from_s + 2.0]) <= 2.0 * 5 + 2
    for call in late:
        at_ns = int(call.at_s * 1e9)
        assert bucket.wait_ns(at_ns, 1) == 0
        bucket.charge(at_ns, 1)
    site.limits("reset", "crm")
    reset_s = time.monotonic()
    wait_until_s(reset_s + CHANGED_WITHIN_S + BUSY_S + 1.0)
    fast_from_s = reset_s + CHANGED_WITHIN_S + BUSY_S
    assert calls_between(api, fast_from_s, fast_from_s + 1.0) >= 75


@pytest.mark.parametrize("deaf", [False, True], ids=["told", "message lost"])
def test_pause_and_resume_under_load(site, api, deaf):
    """A pause stops all calls within a second and a resume lets them go on, even where the messages were lost."""
    if deaf:
        site.redis.client_kill_filter(_type="pubsub")
    assert site.limits("pause", "crm", "--for", "5m", "--reason", "their incident")["reason"] == "their incident"
    still_from_s = time.monotonic() + (CHANGED_WITHIN_S if deaf else 0.0) + BUSY_S
    wait_until_s(still_from_s + 1.0)
    assert calls_between(api, still_from_s, still_from_s + 1.0) == 0
    if deaf:
        site.redis.client_kill_filter(_type="pubsub")
    assert site.limits("resume", "crm")["paused_s"] == 0
    fast_from_s = time.monotonic() + CHANGED_WITHIN_S + BUSY_S
    wait_until_s(fast_from_s + 1.0)
    assert calls_between(api, fast_from_s, fast_from_s + 1.0) >= 75


def test_history_tells_all_of_it(site, api):
    """The history has every change with its author, from what to what, the latest first."""
    assert api.broken == []
    changes = site.limits("history", "crm")
    assert [change["what"] for change in changes] == ["resume", "pause"] * 2 + ["limits"] * 4
    assert [change["after"] for change in changes[-4:]] == ["those of the profile", "300/minute"] * 2
    assert all("@" in change["by"] for change in changes)
    assert "their incident" in changes[1]["after"]
