"""What Prometheus gets of a real run, who may get it, and what remains when Redis is away."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from urllib.parse import urlsplit

import pytest
from dashboard_process import DashboardProcess
from local_nodes import RedisProcess, WorkerProcess, until, write_profiles
from metrics_kit import ROOT, Exported, dashboard_expressions, get

from callmill.config.limit_spec import parse_limit
from callmill.simulator.latency import parse_latency
from callmill.simulator.options import SimulatorOptions
from callmill.simulator.process import SimulatorProcess

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
    """Run a dashboard under a prefix that wants a password for its pages, with a listener for Prometheus."""
    variables = {"redis_url": redis.url, "metrics_port": 0}
    node = DashboardProcess(folder, variables, "--basic-auth", SIGN_IN, "--", "--url_prefix=callmill").start()
    node.ready()
    until(lambda: "Metrics on" in node.logs(), what="the listener")
    yield node
    node.teardown()


@pytest.fixture(scope="module")
def runs(folder, redis, dashboard):
    """Run a batch with one worker, end it, run another with another; return what was exported after each."""
    options = SimulatorOptions(
        limits=(parse_limit("400/second"),),
        latency=parse_latency("5ms-20ms"),
        error_rate=0.1,
        error_statuses=(400, 500),
        seed=1,
    )
    exported = []
    with SimulatorProcess(options) as simulator:
        apis = write_profiles(
            folder / "apis.toml",
            {
                "crm": [
                    f'base_url = "{simulator.url}"',
                    'limits = ["200/second", "100 concurrent", "100000 tokens/minute"]',
                    "retry = { attempts = 2, base = 0.01 }",
                ]
            },
        )
        for number in range(2):
            node = WorkerProcess(folder, redis.url, apis, {}).start()
            try:
                node.ready()
                run_batch(folder, redis, f"batch {number}")
                exported.append(scraped_when(dashboard, lambda now, n=number: ended(now) == JOBS * (n + 1)))
            finally:
                node.teardown()
    return exported


def run_batch(folder, redis, name):
    """Run a batch to its end."""
    lines = (json.dumps({"custom_id": str(n), "method": "GET", "url": f"/rows/{n}", "tokens": 3}) for n in range(JOBS))
    (folder / "calls.jsonl").write_text("\n".join(lines))
    options = ["calls.jsonl", "-o", "out.jsonl", "--name", name, "--fresh", "--yes"]
    command = [sys.executable, "-m", "callmill.cli", "run", *options]
    variables = {**os.environ, "CALLMILL_REDIS_URL": redis.url}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr  # some of its jobs failed


def ended(exported):
    """Return how many jobs have their outcome."""
    return exported.sum("callmill_outcomes_total")


def scraped_when(dashboard, condition):
    """Scrape until a condition holds: counts come a second after the facts."""
    return until(
        lambda: now if condition(now := Exported(get(dashboard.metrics_url).text)) else None,
        what="the counts are there",
    )


def test_counts_are_those_of_the_run(runs):
    """Calls, outcomes, latencies and waits of the run are counted, and they fit together."""
    first = runs[0]
    calls = first.sum("callmill_calls_total", api="crm")
    outcomes = {result: first.value("callmill_outcomes_total", api="crm", result=result) for result in OUTCOMES}
    assert outcomes["succeeded"] + outcomes["failed"] == JOBS
    assert outcomes["failed"] > 0
    assert first.value("callmill_calls_total", api="crm", result="2xx") == outcomes["succeeded"]
    assert calls == JOBS + first.value("callmill_retries_total", api="crm") > JOBS
    assert first.value("callmill_call_duration_seconds_count", api="crm") == calls
    assert first.value("callmill_call_duration_seconds_sum", api="crm") >= 0.005 * calls
    assert first.value("callmill_throttled_total", api="crm") == 0
    assert first.value("callmill_limiter_wait_seconds_count", api="crm") > 0


OUTCOMES = ("succeeded", "failed")


def test_counters_go_on_over_workers(runs):
    """Another worker's counts come on top of those of one that ended: no counter ever falls."""
    first, second = runs
    counters = {
        series: value for series, value in first.values.items() if re.search("_(total|bucket|sum|count)$", series[0])
    }
    assert len(counters) > 20
    assert [series for series, value in counters.items() if second.values[series] < value] == []
    assert second.sum("callmill_calls_total") >= first.sum("callmill_calls_total") + JOBS


def test_the_fleet_is_told(runs):
    """What is so now is told: the worker, the batch that is over, the limits, the breaker, and Redis."""
    now = runs[0]
    assert now.value("callmill_up") == 1
    assert now.value("callmill_workers", state="working") == 1
    assert now.value("callmill_api_workers", api="crm") == 1
    assert now.value("callmill_batches", state="over") == 1
    assert now.value("callmill_batches", state="running") == 0
    assert now.value("callmill_batches_stuck") == 0
    assert now.value("callmill_breaker_state", api="crm", state="closed") == 1
    assert now.sum("callmill_breaker_state") == 1
    assert now.value("callmill_chunks_queued", api="crm") == 0
    assert now.value("callmill_calls_in_flight", api="crm") == 0
    assert 0 < now.value("callmill_limit_used_ratio", api="crm", limit="200/second") <= 1
    assert 0.5 < now.value("callmill_limit_usable_ratio", api="crm", limit="200/second") <= 1
    assert now.value("callmill_redis_memory_used_bytes") > 1e5
    assert now.sum("callmill_worker_resident_memory_bytes") > 1e7


def test_names_follow_the_rules_of_prometheus(runs):
    """Counters end in _total, nothing else does; units are base units; no label names a batch or a job."""
    for name, kind in runs[0].families.items():
        assert name.endswith("_total") == (kind == "counter"), name
        assert not re.search(r"_(ms|us|milliseconds|microseconds|minutes|kb|mb|percent)(_|$)", name), name
    labels = set().union(*runs[0].labels.values())
    assert labels <= {"api", "result", "limit", "state", "action", "worker", "le"}


def test_every_metric_is_documented(runs):
    """The table of docs/metrics.md has every metric with its type and its labels, and no other."""
    page = (ROOT / "docs/metrics.md").read_text()
    rows = re.findall(r"^\| `(callmill_\w+)` \| (\w+) \|([^|]*)\|", page, re.MULTILINE)
    told = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    now = runs[1]
    real = {}
    for name, kind in now.families.items():
        series = name + "_count" if kind == "histogram" else name
        real[name] = (kind, now.labels[series])
    assert told == real


def test_rules_and_dashboard_name_what_is_exported(runs):
    """Every expression of the alert rules and of the Grafana dashboard names metrics and labels that there are."""
    rules = (ROOT / "config/prometheus/alerts.yml").read_text()
    expressions = list(dashboard_expressions())
    assert len(expressions) > 30
    assert [unknown for text in [*expressions, rules] if (unknown := runs[1].unknown(text))] == []


def test_the_page_wants_the_sign_in(dashboard):
    """/metrics of the dashboard answers nobody who has not signed in; who has gets Flower's metrics and ours."""
    page = dashboard.url + "metrics"
    assert page.endswith("/callmill/metrics")
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
    wanted = json.loads(get(beside + "/workers-wanted").text)
    assert (wanted["wanted_now"], wanted["why"].partition(";")[0]) == (0, "nothing to do")
    for path in ("/", "/workers", "/api/workers", "/static/css/flower.css", "/healthcheck", "/metrics/"):
        assert (path, get(beside + path).status) == (path, 404)
    assert urlsplit(dashboard.metrics_url).hostname == "127.0.0.1"


def test_a_listener_that_cannot_listen_is_an_error(folder, redis):
    """Where the port for Prometheus is taken, the dashboard does not start, and says which it was."""
    variables = {**os.environ, "CALLMILL_REDIS_URL": redis.url}
    done = subprocess.run(
        [sys.executable, "-m", "callmill.dashboard", "--port", "0", "--metrics-port", str(redis.port)],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert f"metrics cannot be served on 127.0.0.1:{redis.port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_secret_is_exported(dashboard, redis, runs):  # noqa: ARG001 - something to tell
    """Neither a password nor a batch's name stands in the metrics."""
    text = get(dashboard.metrics_url).text
    assert "batch 0" not in text
    assert "secret" not in text


def goes(redis):
    """Redis is killed; return how it comes back."""
    redis.kill()
    return redis.restart


def hangs(redis):
    """Redis answers nobody any more; return how it does again."""
    redis.send(signal.SIGSTOP)
    return lambda: redis.send(signal.SIGCONT)


def _unless_ok(url):
    """Return an answer that is another one than 200."""
    answer = get(url)
    return None if answer.status == 200 else answer


@pytest.mark.parametrize("ends", [goes, hangs])
def test_without_redis_it_still_answers(dashboard, redis, ends):
    """While Redis is down, or silent, a scrape says so, and nothing stale; afterwards everything is told again."""
    names = set(scraped_when(dashboard, lambda now: now.value("callmill_up") == 1).families)
    come_back = ends(redis)
    try:
        down = scraped_when(dashboard, lambda now: now.value("callmill_up") == 0)
        assert set(down.families) == {"callmill_up", "callmill_read_seconds"}
        assert get(dashboard.url + "metrics", sign_in=SIGN_IN).status == 200
        # Its answer may be a second old, and be older than what /metrics just said.
        wanted = until(lambda: _unless_ok(dashboard.metrics_url.replace("/metrics", "/workers-wanted")))
        assert (wanted.status, list(json.loads(wanted.text))) == (503, ["error"])
    finally:
        come_back()
    up = scraped_when(dashboard, lambda now: now.value("callmill_up") == 1)
    assert set(up.families) == names > set(down.families)
    assert "Traceback" not in dashboard.logs()
