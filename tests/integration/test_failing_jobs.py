"""Jobs that always fail, with real workers: they end and hold nobody; an API that is down for all fails nobody."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from celery import Celery
from limits_site import Site, limits_site
from local_nodes import until
from strict_api import Reply, StrictApi, strict_api

from callmill.config.celery import CALLS_QUEUE, KEY_PREFIX
from callmill.producer import Batch, Job
from callmill.workers import tasks
from callmill.workers.breaker_gate import MOST_SPARED

pytestmark = pytest.mark.long

WAIT_S = 30
ATTEMPTS, BASE_S, PER_S = 5, 0.1, 20
WAITS_S = BASE_S * (2 ** (ATTEMPTS - 1) - 1)
"""The longest that the waits of one job take together."""
OVERHEAD_S = 1.5
"""What a batch takes of which no job fails."""
RETRY = f"retry = {{ attempts = {ATTEMPTS}, base = {BASE_S} }}"
BREAKER = "breaker = { probe = 0.2, cap = 0.4, window = 1 }"
TIMEOUT_S = 0.3
NEXT_PROBE_S = 60


@pytest.fixture(scope="module")
def api() -> Iterator[StrictApi]:
    """Serve an API that answers 500 below ``/bad``."""
    with strict_api() as serving:
        yield serving


@pytest.fixture(scope="module")
def site(redis_server, tmp_path_factory, api) -> Iterator[Site]:
    """Run two workers."""
    common = [f'base_url = "{api.url}"', "max_connections = 200"]
    profiles = {
        "free": [*common, RETRY],
        "paced": [*common, RETRY, f'limits = ["{PER_S}/second"]', 'enforcer = "bucket"'],
        "mute": [*common, RETRY, f"timeout = {TIMEOUT_S}", 'idempotency = "always"'],
        "many": [*common, RETRY, BREAKER],
        "crowded": [
            *common,
            RETRY,
            f"breaker = {{ probe = {NEXT_PROBE_S} }}",
            'limits = ["100/second"]',
            'enforcer = "bucket"',
        ],
        # The attempts of one job last longer than the second that a streak takes.
        "busy": [*common, "retry = { attempts = 8, base = 1, cap = 1 }", BREAKER],
        "closed": [*common, "retry = { attempts = 3, base = 2, cap = 2 }", "breaker = { probe = 0.05, cap = 0.05 }"],
        "plain": [*common],
    }
    with limits_site(tmp_path_factory.mktemp("failing"), redis_server.url, profiles, workers=2) as running:
        yield running
        log = running.logs()  # with the traceback of a plain task that failed, as it should
        assert not any(words in log for words in ("a part of the worker died", "a runner died", "met a bug"))


@pytest.fixture(autouse=True)
def fresh(api) -> None:
    """Let the API be up, and answer 500 below ``/bad``."""
    api.latency_s = 0.0
    api.arrivals.clear()
    api.reply = lambda target, _key: Reply(500) if target.startswith("/bad") else None


def submit(site: Site, api: str, bad: int, good: int) -> Batch:
    """Submit a file, the bad jobs evenly among the good and the first of all a bad one."""
    total = bad + good
    at = {n * total // bad for n in range(bad)}
    return site.client.submit([Job("POST", f"/{'bad' if n in at else 'good'}/{n}", api=api) for n in range(total)])


def ends(site: Site, batch: Batch) -> Counter[str]:
    """Return what came of a batch's jobs."""
    return Counter(
        f"{outcome.error.code if outcome.error else 'ok'}, {outcome.attempts}" for outcome in site.outcomes(batch)
    )


def expected(bad: int, good: int, code: str = "http_500") -> Counter[str]:
    """Return what should come of a file."""
    return +Counter({f"{code}, {ATTEMPTS}": bad, "ok, 1": good})


@pytest.mark.parametrize("name", ["free", "paced"])
@pytest.mark.parametrize(("bad", "good"), [(12, 0), (50, 0), (6, 100), (1, 20)])
def test_bad_jobs_fail_in_the_time_of_their_attempts(site, name, bad, good):
    """However many of a file fail, it ends within twice what its attempts and waits take, file after file."""
    began_s = time.monotonic()
    assert ends(site, submit(site, name, bad, good)) == expected(bad, good)
    calls_s = (bad * ATTEMPTS + good) / PER_S if name == "paced" else 0.0
    assert time.monotonic() - began_s <= 2 * (calls_s + WAITS_S + OVERHEAD_S)


def test_jobs_that_hang_fail_in_the_time_of_their_attempts(site, api):
    """Time-outs may be the job's own fault: files full of them end as those of 500s do."""
    api.latency_s = 60.0
    began_s = time.monotonic()
    assert ends(site, submit(site, "mute", 30, 0)) == expected(30, 0, "timeout")
    assert time.monotonic() - began_s <= 2 * (ATTEMPTS * TIMEOUT_S + WAITS_S + OVERHEAD_S)


@pytest.mark.parametrize("others", ["another batch", "another class"])
def test_so_many_bad_jobs_that_the_api_seems_down_hold_nobody(site, others):
    """Where more jobs fail in a row than a bad file has, others need not wait for the next probe, a minute later."""
    bad = submit(site, "crowded", 100, 0)
    until(lambda: "is down" in (bad.progress().limited_by or ""), WAIT_S, "open")
    began_s = time.monotonic()
    jobs = [Job("POST", f"/good/{n}", api="crowded") for n in range(20)]
    good = site.client.submit(jobs, priority="bulk" if others == "another class" else "normal")
    assert ends(site, good) == {"ok, 1": 20}
    assert time.monotonic() - began_s <= NEXT_PROBE_S / 4
    bad.cancel()


def test_an_api_that_fails_everybody_fails_nobody(site, api):
    """Five hundred jobs get 500 each for some seconds, and twenty probes: none fails, none has lost two attempts."""
    api.reply = lambda _target, _key: Reply(500)
    batch = site.submit("many", 500, url="/good")
    until(lambda: "is down" in (batch.progress().limited_by or ""), WAIT_S, "open")
    seen = len(api.arrivals)
    until(lambda: len(api.arrivals) >= seen + 20, WAIT_S, "twenty probes")
    assert batch.progress().failed == 0
    api.reply = lambda _target, _key: None
    assert max(outcome.attempts for outcome in site.outcomes(batch)) <= 2
    assert batch.progress().succeeded == 500


def test_one_job_opens_no_breaker(site, api):
    """A job that the API never serves fails on its attempts, and the API stays up for all others."""
    api.reply = lambda target, _key: Reply(503) if target == "/closed" else None
    job = site.submit("busy", 1, url="/closed")
    assert ends(site, job) == {"http_503, 8": 1}
    assert [row["breaker"] for row in site.limits() if row["api"] == "busy"] == ["closed"]


def test_jobs_that_are_never_served_end_in_the_end(site, api):
    """Jobs that get nothing but 503 are spared for a while, and fail on their attempts then."""
    # No job may have spent its attempts within the second that it takes to find the API down.
    api.reply = lambda _target, _key: Reply(503, {"Retry-After": "1"} if len(api.arrivals) <= 2 * 3 else {})
    assert ends(site, site.submit("closed", 3)) == {"http_503, 3": 3}
    assert len(api.arrivals) >= 3 * MOST_SPARED


@pytest.mark.usefixtures("site")
def test_the_plain_task_ends(redis_server):
    """``callmill.call`` to a URL that always fails ends after Celery's five retries."""
    with contextlib.closing(
        Celery("theirs", broker=redis_server.url, backend=redis_server.url, set_as_current=False)
    ) as app:
        app.conf.broker_transport_options = {"global_keyprefix": KEY_PREFIX}
        app.conf.result_backend_transport_options = {"global_keyprefix": KEY_PREFIX}
        task = app.send_task(tasks.CALL, ({"method": "GET", "url": "/bad/1", "api": "plain"},), queue=CALLS_QUEUE)
        until(task.ready, 60, "ended")
        assert task.state == "FAILURE"
        assert "http_500" in str(task.result)
