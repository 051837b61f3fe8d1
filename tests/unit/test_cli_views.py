"""What commands show: progress, reports, findings, CPU."""

from __future__ import annotations

import io
import resource

import pytest
from msgspec.structs import replace
from rich.console import Console

from callmill.cli.doctor_checks import check_profiles, check_workers
from callmill.cli.figures import counted
from callmill.cli.fleet_cpu import FleetCpu
from callmill.cli.progress_view import ProgressView, progress_line, progress_panel
from callmill.cli.run_command import _over
from callmill.cli.run_report import RunReport, latency, render_report, seconds
from callmill.config.redis_safety import Level
from callmill.config.settings import load_settings
from callmill.jobs.traffic import Priority
from callmill.ledger.fleet import WorkerStatus
from callmill.ledger.records import BatchState
from callmill.producer import Progress

PROGRESS = Progress(
    id="0123456789ab", name="translate-catalogue", state=BatchState.RUNNING, sealed=True, ended=False,
    total=12_000_000, done=9_000_000, succeeded=8_999_000, failed=1_000, retries=12_345, calls=9_012_345,
    throttled=17, rate=12_345.6, eta=243.0, limited_by="limit openai 200000 tokens/minute", p50=0.12, p95=0.4,
    p99=1.5, elapsed=7_300.0, mean_rate=1_643.8,
)  # fmt: skip
OVER = replace(PROGRESS, ended=True, state=BatchState.DONE, done=12_000_000, succeeded=12_000_000, failed=0)
WORKER = WorkerStatus(
    id="w", host="h", pid=7, started_ms=0, calls=0, cpu_s=2.0, draining=False, apis=["local"], lanes=[]
)


def rendered(renderable, width=80):
    """Return what a console of that width shows."""
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(renderable)
    return console.export_text()


def test_progress_fits_a_terminal():
    """The progress of a large batch fits 80 columns and says what limits it."""
    shown = rendered(progress_panel(PROGRESS))
    assert max(map(len, shown.splitlines())) <= 80
    for part in ("75%", "9,000,000 of 12,000,000", "limit openai 200000 tokens/minute", "4 min 3 s left", "2 h 1 min"):
        assert part in shown


def test_progress_in_a_pipe():
    """Without a terminal a line comes now and then, and always at the end."""
    file = io.StringIO()
    with ProgressView(Console(file=file, width=200)) as view:
        for _ in range(3):
            view.show(PROGRESS)
        view.show(OVER, last=True)
    assert file.getvalue().splitlines() == [progress_line(PROGRESS), progress_line(OVER)]


def test_report():
    """A report tells counts, rate, latencies and CPU, and whether all went well."""
    report = RunReport.of(OVER, cpu_us_per_call=81.4)
    shown = rendered(render_report(report))
    for part in ("12,000,000 succeeded, 0 failed", "1,643.8 jobs/s", "p99 1.50 s", "81 us per call"):
        assert part in shown
    assert report.all_succeeded
    for worse in ({"bad_lines": 1}, {"succeeded": 1}, {"state": "cancelled"}):
        assert not replace(report, **worse).all_succeeded


def test_one_of_a_kind_is_singular():
    """Counts of one have a noun without an s, wherever a run or a command tells them."""
    one = replace(OVER, total=1, done=1, succeeded=0, failed=1, retries=1)
    report = RunReport.of(one)
    assert "1 retry," in rendered(render_report(report))
    assert ", 1 retry" in progress_line(one)
    assert "its 1 failed job again" in _over(report)
    assert [counted(count, "job") for count in (0, 1, 2, 1000)] == ["0 jobs", "1 job", "2 jobs", "1,000 jobs"]


@pytest.mark.parametrize(("value", "text"), [(4.24, "4.2 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_seconds(value, text):
    """A time is written as people say it."""
    assert seconds(value) == text


@pytest.mark.parametrize(("value", "text"), [(None, "-"), (0.0041, "4.1 ms"), (0.38, "380 ms"), (2.3, "2.30 s")])
def test_latency(value, text):
    """A latency is written with the digits that matter."""
    assert latency(value) == text


def test_cpu_per_call():
    """CPU per call is over all workers, and does not count what starting cost them."""
    cpu = FleetCpu()
    assert cpu.us_per_call is None
    for calls, cpu_s in ((0, 2.0), (1000, 2.1)):
        cpu.note([replace(WORKER, calls=calls, cpu_s=cpu_s), replace(WORKER, id="x", calls=1, cpu_s=9)])
    assert cpu.us_per_call == pytest.approx(100)


def test_machine_findings(monkeypatch, tmp_path):
    """Missing credentials, too few file descriptors and missing workers are found."""
    path = tmp_path / "apis.toml"
    path.write_text('[apis.a]\nbase_url = "https://a.example"\nauth = { bearer = "env:NO_SUCH_KEY" }\n')
    monkeypatch.setenv("CALLMILL_APIS", str(path))
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    levels = {finding.check: finding.level for finding in check_profiles(load_settings())}
    found = {"profiles": Level.OK, "credentials": Level.FAIL, "open files": Level.FAIL, "alerts": Level.OK}
    assert levels == found
    assert check_workers([]).level is Level.WARN
    assert "serving local" in check_workers([WORKER]).found


@pytest.mark.parametrize(("key", "level"), [("s3cr3t!", Level.WARN), ("s3cr3t!-and-long", Level.OK)])
def test_doctor_tells_of_credentials_that_cannot_be_masked(tmp_path, monkeypatch, key, level):
    """A credential that is too short to be taken out of answers is named by its API, and not shown."""
    monkeypatch.chdir(tmp_path)
    auth = 'auth = { query = { key = "env:CRM_KEY" } }'
    (tmp_path / "apis.toml").write_text(f'[apis.crm]\nbase_url = "https://crm.example"\n{auth}\n')
    monkeypatch.setenv("CRM_KEY", key)
    (finding,) = [found for found in check_profiles(load_settings()) if found.check == "credentials"]
    assert finding.level is level
    assert ("crm" in finding.found) is (level is Level.WARN)
    assert key not in f"{finding}"


def test_class_is_shown_where_it_is_not_the_usual_one():
    """A batch shows priority and tenant once they matter."""
    urgent = replace(PROGRESS, priority=Priority.INTERACTIVE, tenant="acme")
    assert "interactive/acme" in rendered(progress_panel(urgent))
    assert "normal" not in rendered(progress_panel(PROGRESS))
