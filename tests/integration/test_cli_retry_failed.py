"""``callmill run --retry-failed`` with real processes: a wrong key is put right, and what is killed in between."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from callmill.cli.run_state import load_state, save_state, state_path
from callmill.config.embedded_server import running_url
from callmill.config.settings import load_settings

pytestmark = pytest.mark.long

PATIENCE_S = 60
KEY = "Bearer right"
ALWAYS_404 = "/missing"


class Api(ThreadingHTTPServer):
    """An API that takes one key, and counts what it is asked."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.refused, self.served = Counter(), Counter()
        self.pace_s = 0.0

    @property
    def url(self):
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Api

    def do_GET(self):
        """Refuse a wrong key; answer with the path."""
        if self.headers["Authorization"] != KEY:
            self.server.refused[self.path] += 1
            self._answer(401, b'{"error":"bad key"}')
            return
        time.sleep(self.server.pace_s)
        self.server.served[self.path] += 1
        self._answer(404 if self.path.startswith(ALWAYS_404) else 200, json.dumps({"path": self.path}).encode())

    def _answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Stay quiet."""


@pytest.fixture
def api(monkeypatch, tmp_path):
    """Run the API, with a profile for it in a directory of the test's own, and an embedded server of its own."""
    for variable in ("CALLMILL_REDIS_URL", "CALLMILL_BROKER_URL", "CALLMILL_LIMITER_URL", "CALLMILL_STATE_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("CALLMILL_APIS", str(tmp_path / "apis.toml"))
    monkeypatch.setenv("CALLMILL_SHUTDOWN_GRACE_S", "2")
    monkeypatch.setenv("CRM_TOKEN", "wrong")
    monkeypatch.chdir(tmp_path)
    server = Api()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Path("apis.toml").write_text(
        f'[apis.crm]\nbase_url = "{server.url}"\nallow_private_addresses = true\n'
        'auth = { bearer = "env:CRM_TOKEN" }\n',
        encoding="utf-8",
    )
    yield server
    server.shutdown()
    server.server_close()
    at = tmp_path / "state" / "callmill" / "server.json"
    if at.exists() and running_url(load_settings()) is not None:
        os.kill(json.loads(at.read_bytes())["pid"], signal.SIGKILL)


def write_input(count, *, missing=0, extra=()):
    """Write a file of calls, some of which the API never finds; return their ids."""
    rows = [(f"row-{n}", f"/{n}") for n in range(count)] + [(f"no-{n}", f"{ALWAYS_404}/{n}") for n in range(missing)]
    lines = [json.dumps({"custom_id": name, "method": "GET", "url": url}) for name, url in rows]
    Path("in.jsonl").write_text("\n".join([*lines, *extra]) + "\n", encoding="utf-8")
    return [name for name, _ in rows]


def callmill(*arguments):
    """Run the command to its end and return what it did."""
    command = [sys.executable, "-m", "callmill.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def run(*options):
    """Run the file with one worker."""
    return callmill("run", "in.jsonl", "-o", "out.jsonl", "--workers", "1", *options)


@contextmanager
def fleet():
    """Run ``up`` with one worker meanwhile."""
    command = [sys.executable, "-m", "callmill.cli", "up", "--workers", "1", "--no-dashboard"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as up:
        try:
            assert any(": ready" in line for line in up.stderr)
            yield
        finally:
            up.terminate()
            up.communicate(timeout=PATIENCE_S)


def results(*paths):
    """Return (custom_id, status or the error's code) of every line."""
    lines = [json.loads(line) for path in paths for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return Counter(
        (line["custom_id"], line["error"]["code"] if line["error"] else line["response"]["status_code"])
        for line in lines
    )


def test_failed_rows_run_again(api, monkeypatch):
    """A run of which rows failed is over; with the key put right, --retry-failed makes them right, one line each."""
    ids = write_input(30, missing=2, extra=["{broken"])
    first = run("--errors", "err.jsonl")
    assert first.returncode in (1, 2), first.stderr
    monkeypatch.setenv("CRM_TOKEN", "right")
    done = run("--errors", "err.jsonl", "--retry-failed")
    assert done.returncode == 1, done.stderr
    good = Counter((name, 200) for name in ids if name.startswith("row"))
    bad = Counter([("no-0", "http_404"), ("no-1", "http_404"), (None, "bad_line")])
    assert results("out.jsonl") == good
    assert results("err.jsonl") == bad
    assert set(api.served.values()) == {1}
    over = run("--errors", "err.jsonl")
    assert (over.returncode, "--retry-failed runs its 2 failed jobs again" in over.stderr) == (1, True)
    again = run("--errors", "err.jsonl", "--retry-failed")
    assert again.returncode == 1, again.stderr
    assert Counter(api.served.values()) == {1: 30, 2: 2}
    assert (results("out.jsonl"), results("err.jsonl")) == (good, bad)
    assert not list(Path().glob("*draft*"))
    assert running_url(load_settings()) is None


def test_commands_work_without_up(api, monkeypatch):
    """What a run left in the embedded server is read and steered by each command alone, and no server stays."""
    monkeypatch.setenv("CRM_TOKEN", "right")
    write_input(3, missing=12)
    report = run("--json")
    batch = json.loads(report.stdout)["batch_id"]
    causes = [{"cause": "http_404", "jobs": 12, "words": "404 Not Found"}]
    assert json.loads(report.stdout)["causes"] == causes
    assert json.loads(callmill("status", batch, "--json").stdout)["causes"] == causes
    assert "12 x 404 Not Found" in callmill("status", batch).stdout
    assert batch in callmill("status").stdout
    assert json.loads(callmill("failures", batch, "--json").stdout)[0]["count"] == 12
    unasked = callmill("retry", batch)
    assert (unasked.returncode, "calls of 12 failed jobs" in unasked.stderr, "--yes" in unasked.stderr) == (
        2,
        True,
        True,
    )
    retried = callmill("retry", batch, "--where", "id=no-3")
    assert (retried.returncode, retried.stdout.strip()) == (0, f"{batch}: retried, 1 job")
    assert "--retry-failed" in retried.stderr
    done = run("--retry-failed")
    assert done.returncode == 1, done.stderr
    assert Counter(api.served.values()) == {1: 3, 2: 12}
    assert sum(results("out.jsonl").values()) == 15
    assert callmill("outcomes", batch, "-o", "again.jsonl").returncode == 0
    assert callmill("delete", batch).returncode == 2
    assert callmill("delete", batch, "--yes").returncode == 0
    gone = callmill("outcomes", batch, "-o", "gone.jsonl")
    assert (gone.returncode, "no batch" in gone.stderr, Path("gone.jsonl").exists()) == (2, True, False)
    assert running_url(load_settings()) is None


@pytest.mark.usefixtures("api")
def test_cause_names_the_variable():
    """The report of a run says how many jobs were refused, with what, and which variable has the credential."""
    write_input(3)
    done = run()
    assert done.returncode in (1, 2)
    assert re.search(r"[1-3] x 401 Unauthorized: check CRM_TOKEN", done.stderr), done.stderr


@pytest.mark.parametrize("how", ["profile", "api", "input"])
@pytest.mark.usefixtures("api")
def test_failed_start_leaves_nothing(how):
    """A run that cannot begin leaves no file, no batch and no server."""
    write_input(3)
    options = ["--api", "unknown"] if how == "api" else []
    if how == "profile":
        Path("apis.toml").write_text("[apis.crm]\n", encoding="utf-8")
    elif how == "input":
        Path("in.jsonl").unlink()
    done = run("--errors", "err.jsonl", *options)
    assert done.returncode == 2
    assert not list(Path().glob("out*")) and not list(Path().glob("err*"))  # noqa: PT018
    assert running_url(load_settings()) is None
    if how != "profile":
        assert not json.loads(callmill("status", "--json").stdout or '{"batches": []}')["batches"]


def test_fresh_asks(api, monkeypatch):
    """--fresh drops an output only once that is confirmed; without a terminal it wants --yes."""
    monkeypatch.setenv("CRM_TOKEN", "right")
    write_input(2)
    assert run().returncode == 0
    before = Path("out.jsonl").read_bytes()
    unasked = run("--fresh")
    assert (unasked.returncode, "--yes" in unasked.stderr, str(len(before)) in unasked.stderr) == (2, True, True)
    assert Path("out.jsonl").read_bytes() == before
    assert run("--fresh", "--yes").returncode == 0
    assert Counter(api.served.values()) == {2: 2}
    for path in ("in.jsonl", "../" + Path().absolute().name + "/in.jsonl"):
        refused = callmill("run", "in.jsonl", "-o", path, "--fresh", "--yes")
        assert (refused.returncode, "this is the input" in refused.stderr) == (2, True)
    assert Path("in.jsonl").stat().st_size > 0


@pytest.mark.chaos
def test_killed_in_the_middle_of_a_retry(api, monkeypatch):
    """Killed -9 in the middle of a retry, the same command ends with one line each, and repeats no call that failed."""
    monkeypatch.setenv("CRM_TOKEN", "right")
    ids = write_input(40, missing=200)
    assert run().returncode == 1
    assert Counter(api.served.values()) == {1: 240}
    api.pace_s = 0.05
    command = [sys.executable, "-m", "callmill.cli", "run", "in.jsonl", "-o", "out.jsonl", "--workers", "1"]
    for calls in (270, 320):
        process = subprocess.Popen([*command, "--retry-failed"], stderr=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + PATIENCE_S
        while api.served.total() < calls:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.wait(PATIENCE_S)
    api.pace_s = 0.0
    done = run("--retry-failed")
    assert done.returncode == 1, done.stderr
    expected = Counter((name, 200 if name.startswith("row") else "http_404") for name in ids)
    assert results("out.jsonl") == expected
    # Of each killed run the calls in flight, or not recorded yet, may be made again: what one worker holds at a time.
    repeated = Counter({path: n - 2 for path, n in api.served.items() if path.startswith(ALWAYS_404)})
    assert all(n >= 0 for n in repeated.values())
    assert sum(repeated.values()) < 100, "what failed again was called again"
    assert all(api.served[f"/{n}"] == 1 for n in range(40))


@pytest.mark.chaos
@pytest.mark.parametrize("options", [(), ("--retry-failed",)], ids=["plain", "again"])
def test_killed_before_a_retry_began(api, monkeypatch, options):
    """Killed when it was noted that jobs run again and none did yet, the same command ends with its own workers."""
    monkeypatch.setenv("CRM_TOKEN", "right")
    ids = write_input(2, missing=3)
    with fleet():
        assert callmill("run", "in.jsonl", "-o", "out.jsonl").returncode == 1
    noted = state_path(Path("out.jsonl"))
    state = load_state(noted)
    save_state(noted, msgspec.structs.replace(state, report=None, retry_up_to_ms=time.time_ns() // 1_000_000))
    done = run(*options)
    assert done.returncode == 1, done.stderr
    assert results("out.jsonl") == Counter((name, 200 if name.startswith("row") else "http_404") for name in ids)
    assert Counter(api.served.values()) == {1: 2, 2: 3}


def test_a_retry_by_command_is_followed(api, monkeypatch):
    """After ``callmill retry`` the plain command runs what was retried, and nothing else, and is over again then."""
    monkeypatch.setenv("CRM_TOKEN", "right")
    write_input(2, missing=3)
    batch = json.loads(run("--json").stdout)["batch_id"]
    before = Path("out.jsonl").read_bytes()
    assert callmill("retry", batch, "--where", "id=no-1", "--yes").returncode == 0
    for _ in range(2):
        done = run()
        assert done.returncode == 1, done.stderr
        assert api.served == Counter({"/0": 1, "/1": 1, "/missing/0": 1, "/missing/1": 2, "/missing/2": 1})
    assert "this run is over" in done.stderr
    assert sorted(Path("out.jsonl").read_bytes().splitlines()) == sorted(before.splitlines())
    with fleet():
        api.pace_s = 0.1
        assert callmill("retry", batch, "--yes").returncode == 0
        done = run()
    assert (done.returncode, "this run is over" in done.stderr) == (1, False)
    assert api.served.total() == 9
    assert callmill("delete", batch, "--yes").returncode == 0
    assert "this run is over" in run().stderr
