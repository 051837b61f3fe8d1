"""What Prometheus gets of a real run, who may get it, and what remains when Redis is away."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import pytest
from dashboard_process import DashboardProcess
from local_nodes import RedisProcess, until
from metrics_kit import Exported, get

SIGN_IN = "someone:secret"
JOBS = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of everything that this module starts."""
    return tmp_path_factory.mktemp("metrics")


@pytest.fixture(scope="module")
def redis(folder):
    """Run a server that may be stopped."""
    server = RedisProcess(folder, durable=True).start()
    server.ready()
    yield server
    server.teardown()


@pytest.fixture(scope="module")
def dashboard(folder, redis):
    """Run a dashboard that wants a password for its pages and has a listener for Prometheus."""
    node = DashboardProcess(folder, {"redis_url": redis.url}, "--basic-auth", SIGN_IN, "--metrics-port", "0").start()
    node.ready()
    until(lambda: "Metrics on" in node.logs(), what="the listener")
    yield node
    node.teardown()


def scraped_when(dashboard, condition):
    """Scrape until a condition holds: counts come a second after the facts."""
    return until(
        lambda: now if condition(now := Exported(get(dashboard.metrics_url).text)) else None,
        what="the counts are there",
    )


def test_the_page_wants_the_sign_in(dashboard):
    """/metrics of the dashboard answers nobody who has not signed in; who has gets Flower's metrics and ours."""
    page = dashboard.url + "/metrics"
    assert get(page).status == 401
    assert get(page, sign_in="someone:wrong").status == 401
    answer = get(page, sign_in=SIGN_IN)
    assert answer.status == 200
    assert "\ncallmill_up 1.0\n" in answer.text
    assert "flower_events_total" in answer.text


def test_the_listener_serves_nothing_else(dashboard):
    """The listener for Prometheus asks for no password, and has no page, no API and no file of the dashboard."""
    answer = get(dashboard.metrics_url)
    assert answer.status == 200
    assert {"callmill_up", "flower_events_total"} <= set(re.findall(r"^# TYPE (\w+)", answer.text, re.MULTILINE))
    beside = dashboard.metrics_url.removesuffix("/metrics")
    for path in ("/", "/workers", "/api/workers", "/static/css/flower.css", "/healthcheck", "/metrics/"):
        assert (path, get(beside + path).status) == (path, 404)
    assert urlsplit(dashboard.metrics_url).hostname == "127.0.0.1"


def test_without_redis_it_still_answers(dashboard, redis):
    """While Redis is down a scrape says so, and nothing stale; when it is back everything is told again."""
    names = set(scraped_when(dashboard, lambda now: now.value("callmill_up") == 1).families)
    redis.kill()
    down = scraped_when(dashboard, lambda now: now.value("callmill_up") == 0)
    assert set(down.families) == {"callmill_up", "callmill_read_seconds"}
    assert get(dashboard.url + "/metrics", sign_in=SIGN_IN).status == 200
    redis.restart()
    up = scraped_when(dashboard, lambda now: now.value("callmill_up") == 1)
    assert set(up.families) == names > set(down.families)
    assert "Traceback" not in dashboard.logs()
