"""The alert rules and the configuration of Prometheus and Grafana, as promtool judges them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from container_nodes import compose_or_skip
from metrics_kit import ROOT, dashboard_expressions

PROMETHEUS = ROOT / "config/prometheus"
RULES = dict(re.findall(r"^ +- alert: (\w+)\n((?: {8}.*\n)+)", (PROMETHEUS / "alerts.yml").read_text(), re.MULTILINE))
"""Name of an alert -> the rest of its rule, as text."""


@pytest.fixture(scope="module")
def promtool():
    """Return a function that runs promtool; skip where there is none."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("no promtool: Debian's package prometheus has it, as have the archives of prometheus.io")

    def run(*arguments: str | Path) -> None:
        done = subprocess.run(
            [program, *arguments], cwd=PROMETHEUS, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return run


@pytest.mark.programs
def test_configuration_and_rules_are_valid(promtool):
    """Promtool finds no fault with the configuration and the rules that it names."""
    promtool("check", "config", "prometheus.yml")
    promtool("check", "rules", "--lint-fatal", "alerts.yml")


@pytest.mark.programs
def test_rules_fire_when_they_should(promtool):
    """Every rule fires in its case, after its time, and not in the cases that look alike."""
    promtool("test", "rules", "alerts_test.yml")


def test_every_rule_is_tested():
    """Every alert has a test of when it fires."""
    tested = set(re.findall(r'alertname="(\w+)", alertstate="firing"', (PROMETHEUS / "alerts_test.yml").read_text()))
    assert tested == set(RULES)
    assert len(RULES) >= 8


def test_every_alert_says_what_to_do():
    """Every alert has a summary, a description, a severity, and a runbook line that names its section of the page."""
    page = (ROOT / "docs/metrics.md").read_text()
    assert re.findall(r"^### (Callmill\w+)$", page, re.MULTILINE) == list(RULES)
    for name, rule in RULES.items():
        assert re.findall(r"^ {10}(\w+): .*$", rule, re.MULTILINE) == ["severity", "summary", "description", "runbook"]
        assert re.search(r"severity: (page|warning)\n", rule), name
        assert f'runbook: "docs/metrics.md#{name.lower()}: ' in rule


@pytest.mark.programs
def test_expressions_of_the_grafana_dashboard_parse(promtool, tmp_path):
    """Every expression of the Grafana dashboard is one of Prometheus."""
    rules = [{"record": f"n{number}", "expr": text} for number, text in enumerate(dashboard_expressions())]
    assert len(rules) > 30
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", tmp_path / "rules.yml")


def test_grafana_finds_the_dashboard():
    """The dashboard has what Grafana wants of a file, no panel twice, and no panel over another."""
    dashboard = json.loads((ROOT / "config/grafana/dashboards/callmill.json").read_text())
    assert dashboard["uid"] == "callmill"
    assert dashboard.get("id") is None
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for at in (panel["gridPos"] for panel in panels)
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_containers_fit_together():
    """Compose mounts what exists, publishes ports on this machine only, and Prometheus scrapes the listener."""
    compose = (ROOT / "docker-compose.yml").read_text()
    published = re.findall(r'ports: \["(.*?)"\]', compose)
    assert len(published) == compose.count("ports:") >= 3
    assert all(port.startswith("127.0.0.1:") for port in published)
    mounted = re.findall(r"\./(config/(?:prometheus|grafana)[\w/]*):", compose)
    assert len(mounted) == 3
    assert all((ROOT / path).is_dir() for path in mounted)
    port = re.search(r'"--metrics-port=(\d+)"', compose)[1]
    assert f'targets: ["dashboard:{port}"]' in (PROMETHEUS / "prometheus.yml").read_text()
    assert f'"127.0.0.1:{port}' not in compose


@pytest.mark.programs
def test_compose_accepts_the_file():
    """Compose itself finds no fault with the file, every profile included; it needs no engine for that."""
    done = subprocess.run(
        [*compose_or_skip(), "--profile", "monitoring", "--profile", "demo", "config"],
        cwd=ROOT,
        env={**os.environ, "CALLMILL_DASHBOARD_AUTH": "someone:secret"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {"prometheus:", "grafana:"} <= set(done.stdout.split())


def test_compose_file_asks_for_no_limit_of_the_engines():
    """No service wants more open files than it is given: an engine that has fewer would not start it."""
    for name in ("docker-compose.yml", "docker-compose.sentinel.yml"):
        assert "ulimits" not in (ROOT / name).read_text()
