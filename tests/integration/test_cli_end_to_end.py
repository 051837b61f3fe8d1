"""The command line with real processes: embedded server, workers, simulator; and what survives a kill -9."""

from __future__ import annotations

import gzip
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from callmill.cli.program import callmill
from callmill.config.embedded_server import running_url
from callmill.config.embedded_server import start as start_server
from callmill.config.limit_spec import parse_limit
from callmill.config.redis_connections import connect_blocking
from callmill.config.settings import load_settings
from callmill.simulator import SimulatorOptions, SimulatorProcess

PATIENCE_S = 40


@pytest.fixture(autouse=True)
def _place(monkeypatch, tmp_path):
    """Work in a directory of the test's own, with an embedded server of its own."""
    for variable in ("CALLMILL_REDIS_URL", "CALLMILL_BROKER_URL", "CALLMILL_LIMITER_URL", "CALLMILL_STATE_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("CALLMILL_APIS", str(tmp_path / "apis.toml"))
    monkeypatch.setenv("CALLMILL_SHUTDOWN_GRACE_S", "5")
    monkeypatch.chdir(tmp_path)
    yield
    server = tmp_path / "state" / "callmill" / "server.json"
    if server.exists() and running_url(load_settings()) is not None:
        os.kill(json.loads(server.read_bytes())["pid"], signal.SIGKILL)


@pytest.fixture(scope="module")
def simulator():
    """Run an API that takes 400 calls a second."""
    with SimulatorProcess(SimulatorOptions(limits=(parse_limit("400/second"),))) as process:
        yield process


@pytest.fixture
def api(simulator):
    """Write the profile of that API, and start its counts anew."""
    simulator.reset()
    write_profile(simulator.url, limits='["400/second"]')
    return simulator


def write_profile(url, *, limits="[]"):
    """Write apis.toml with one API."""
    Path("apis.toml").write_text(
        f'[apis.local]\nbase_url = "{url}"\nallow_private_addresses = true\nlimits = {limits}\n', encoding="utf-8"
    )


def write_input(count, *, extra=()):
    """Write a file of calls and return their ids."""
    lines = [
        json.dumps({"custom_id": f"row-{n}", "method": "POST", "url": "/echo", "body": {"n": n}}) for n in range(count)
    ]
    Path("in.jsonl").write_text("\n".join([*lines, *extra]) + "\n", encoding="utf-8")
    return {f"row-{n}" for n in range(count)}


def start(*arguments, **options):
    """Start the command as a process."""
    return subprocess.Popen([sys.executable, "-m", "callmill.cli", *arguments], text=True, **options)


def call(*arguments):
    """Run the command to its end and return what it did."""
    return subprocess.run(
        [sys.executable, "-m", "callmill.cli", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def call_here(*arguments):
    """Run the command inside the test's own process, which spares the imports."""
    return CliRunner().invoke(callmill, arguments)


def results(path="out.jsonl"):
    """Return the lines of an output, parsed."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def await_true(condition, process=None):
    """Wait until the condition holds; fail when it takes too long or the process ends before."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        assert process is None or process.poll() is None, "it ended too early"
        time.sleep(0.01)


def await_line(process, pattern):
    """Read a process's standard error up to a line that matches, and return the match."""
    seen = []
    for line in process.stderr:
        seen.append(line)
        if match := re.search(pattern, line):
            return match
    pytest.fail(f"no line {pattern!r} in {seen}")


def grown_to(size, path="out.jsonl"):
    """Return a condition: the file has that many bytes."""
    return lambda: Path(path).exists() and Path(path).stat().st_size >= size


def gone(pid):
    """Wait until a process that is no child of ours has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    ended = bool(select.select([descriptor], [], [], PATIENCE_S)[0])
    os.close(descriptor)
    return ended


def test_run(api):
    """A run writes one line per job in OpenAI's format, reports bad lines, and knows that it is over."""
    Path("errors.jsonl").touch()
    lines = ["{broken", '{"custom_id": "row-0", "method": "GET", "url": "/"}', '{"custom_id": "odd", "methd": "GET"}']
    ids = write_input(300, extra=[*lines, json.dumps({"custom_id": "text", "method": "GET", "url": "/hello"})])
    done = call("run", "in.jsonl", "-o", "out.jsonl", "--errors", "errors.jsonl", "--workers", "1", "--json")
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert (report["jobs"], report["succeeded"], report["bad_lines"]) == (301, 301, 3)
    assert report["cpu_us_per_call"] is None or report["cpu_us_per_call"] > 0
    assert Counter(line["custom_id"] for line in results()) == Counter([*ids, "text"])
    row = next(line for line in results() if line["custom_id"] == "row-7")
    assert row["error"] is None
    assert (row["response"]["status_code"], row["response"]["body"]["body"]) == (200, {"n": 7})
    bad = results("errors.jsonl")
    assert [(line["error"]["line"], line["custom_id"]) for line in bad] == [(301, None), (302, "row-0"), (303, "odd")]
    assert {line["error"]["code"] for line in bad} == {"bad_line"}
    again = call("run", "in.jsonl", "-o", "out.jsonl", "--errors", "errors.jsonl")
    assert (again.returncode, "this run is over" in again.stderr) == (1, True)
    assert api.stats()["accepted"] == 301
    assert running_url(load_settings()) is None


@pytest.mark.chaos
def test_stopped_run_goes_on(api):
    """A run that was killed -9, and then stopped with Ctrl-C, in the middle finishes with every custom_id once."""
    ids = write_input(1200, extra=["{broken"])
    command = ("run", "in.jsonl", "-o", "out.jsonl", "--workers", "1")
    for number, code, size in ((signal.SIGKILL, -9, 30_000), (signal.SIGINT, 130, 120_000)):
        process = start(*command, stderr=subprocess.DEVNULL)
        await_true(grown_to(size), process)
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == code
        assert len(Path("out.jsonl").read_bytes().splitlines()) < 1201
    done = call(*command)
    assert done.returncode == 1, done.stderr
    assert Counter(line["custom_id"] for line in results()) == Counter([*ids, None])
    assert api.stats()["idempotency"]["keys"] == 1200


@pytest.mark.chaos
def test_killed_server_comes_back(api):
    """A run starts a killed embedded server again and finishes with every custom_id exactly once."""
    ids = write_input(800)
    process = start("run", "in.jsonl", "-o", "out.jsonl", "--workers", "1", stderr=subprocess.PIPE)
    await_true(grown_to(30_000), process)
    server = load_settings().state_dir / "server.json"
    os.kill(json.loads(server.read_bytes())["pid"], signal.SIGKILL)
    await_line(process, "it was started again")
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert Counter(line["custom_id"] for line in results()) == Counter(ids)
    assert api.stats()["idempotency"]["keys"] == 800


def test_up(api):
    """Everything that ``up`` runs comes back after a kill -9, serves other commands, and stops at SIGTERM."""
    write_input(50)
    up = start("up", "--workers", "1", "--no-dashboard", stderr=subprocess.PIPE)
    try:
        first = int(await_line(up, r"callmill-(\d+)@\S+: ready")[1])
        os.kill(first, signal.SIGKILL)
        await_line(up, "was ended by SIGKILL; starting it again")
        await_line(up, r"callmill-\d+@\S+: ready")
        done = call("run", "in.jsonl", "-o", "out.jsonl")
        assert done.returncode == 0, done.stderr
        assert api.stats()["accepted"] == len(results()) == 50
        assert call("up").returncode == 2
    finally:
        up.terminate()
        output = up.communicate(timeout=60)[1]
    assert (up.returncode, "stopped" in output) == (0, True)
    assert running_url(load_settings()) is None


@pytest.mark.chaos
def test_children_end_with_a_killed_up(api):
    """Workers end by themselves when ``up`` is killed -9, and the next command that needs the server stops it."""
    assert api.url
    up = start("up", "--workers", "1", "--no-dashboard", stderr=subprocess.PIPE)
    worker = int(await_line(up, r"callmill-(\d+)@\S+: ready")[1])
    up.kill()
    up.communicate(timeout=60)
    assert gone(worker)
    assert running_url(load_settings()) is not None
    write_input(1)
    assert call("run", "in.jsonl", "-o", "out.jsonl", "--workers", "1").returncode == 0
    assert running_url(load_settings()) is None


def test_wrong_configuration_is_one_message():
    """A worker, a run and ``up`` refuse a wrong profile with exit code 2 and its place, and no traceback."""
    Path("apis.toml").write_text('[apis.local]\nbase_url = "ftp://x"\n', encoding="utf-8")
    write_input(1)
    for command in (("worker",), ("up",), ("run", "in.jsonl", "-o", "out.jsonl")):
        done = call_here(*command)
        assert done.exit_code == 2
        assert "[apis.local] base_url" in done.stderr
        assert "Traceback" not in done.stderr
        assert isinstance(done.exception, SystemExit)
    assert running_url(load_settings()) is None


def test_batch_commands(api, monkeypatch):
    """A batch without workers is submitted, shown, paused, resumed, cancelled and deleted; errors name the remedy."""
    assert api.url
    server = start_server(load_settings())
    monkeypatch.setenv("CALLMILL_REDIS_URL", server.url)
    write_input(3)
    batch = call_here("submit", "in.jsonl", "--name", "three", "--priority", "bulk", "--tenant", "acme").stdout.strip()
    shown = json.loads(call_here("status", batch, "--json").stdout)
    assert (shown["id"], shown["name"], shown["total"]) == (batch, "three", 3)
    assert (shown["priority"], shown["tenant"]) == ("bulk", "acme")
    assert "bulk/acme" in call_here("status").stdout
    assert "no worker serves local" in call_here("status", batch).stdout
    assert batch in call_here("status").stdout
    for action, what in (("cancel", "3 jobs will never run"), ("delete", "3 jobs, 0 outcomes")):
        unasked = call_here(action, batch)
        assert (unasked.exit_code, what in unasked.stderr, "--yes" in unasked.stderr) == (2, True, True)
    for (action, *yes), state in ((("pause",), "paused"), (("resume",), "running"), (("cancel", "--yes"), "cancelled")):
        assert call_here(action, batch, *yes).exit_code == 0
        assert json.loads(call_here("status", batch, "--json").stdout)["state"] == state
    assert call_here("watch", batch).exit_code == 1
    assert call_here("outcomes", batch, "--release").stdout == ""
    assert json.loads(call_here("limits", "--json").stdout)[0]["limits"] == ["400/second"]
    assert json.loads(call_here("doctor", "--json").stdout)[0]["level"] == "ok"
    assert call_here("delete", batch, "--yes").exit_code == 0
    missing = call_here("status", batch)
    assert (missing.exit_code, "no batch" in missing.stderr) == (2, True)
    unknown = call_here("submit", "in.jsonl", "--api", "lokal")
    assert (unknown.exit_code, "--api: 'lokal'" in unknown.stderr) == (2, True)
    nobody = call_here("submit", "in.jsonl", "--tenant", "a b")
    assert (nobody.exit_code, "no tenant" in nobody.stderr) == (2, True)
    write_input(1, extra=["{broken"])
    refused = call_here("submit", "in.jsonl")
    assert (refused.exit_code, "line 2" in refused.stderr) == (2, True)
    with closing(connect_blocking(server.url)) as client:
        assert client.zcard("callmill:batches") == 0


def test_no_server_names_both_remedies():
    """Without any Redis a command says what to set and what to start, with exit code 1."""
    done = call_here("status")
    assert done.exit_code == 1
    assert "CALLMILL_REDIS_URL" in done.stderr
    assert "callmill up" in done.stderr


@pytest.mark.chaos
def test_streams_survive_a_kill(api):
    """From standard input, compressed, to standard output: killed half way, the same command gives every line once."""
    ids = write_input(800)
    packed = gzip.compress(Path("in.jsonl").read_bytes())
    Path("in.jsonl").unlink()
    arguments = ("run", "-", "-o", "-", "--workers", "1")
    first = start(*arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    first.stdin.buffer.write(packed)
    first.stdin.close()
    with first.stdout:
        assert json.loads(first.stdout.readline())["custom_id"] in ids
        first.kill()
    first.wait()
    again = subprocess.run(
        [sys.executable, "-m", "callmill.cli", *arguments], input=packed, capture_output=True, timeout=60, check=False
    )
    assert again.returncode == 0, again.stderr
    written = [json.loads(line) for line in again.stdout.splitlines()]
    assert Counter(line["custom_id"] for line in written) == Counter(ids)
    assert api.stats()["idempotency"]["keys"] == 800
    assert list(Path("state/callmill/runs").iterdir()) == []
