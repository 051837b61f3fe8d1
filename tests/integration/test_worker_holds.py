"""Wrong keys and wrong hosts: an API that cannot work is held after a handful of calls, and goes on once it can."""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme
from faulty_server import FaultyServer, faulty_server
from local_nodes import free_port, write_profiles
from strict_api import Reply, strict_api

from callmill.config.embedded_server import running_url
from callmill.config.settings import load_settings

JOBS = 2_000
MOST_CALLS = 20
ENDS_WITHIN_S = 45


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


@pytest.fixture
def api():
    """Serve an API that takes any number of calls with the key "right"."""
    with strict_api() as served:
        served.reply = lambda _target, key: None if key == "right" else Reply(401)
        yield served


def write_profile(url, *lines):
    """Write apis.toml with one API."""
    told = [f'base_url = "{url}"', "allow_private_addresses = true", *lines]
    Path("apis.toml").write_text("\n".join(["[apis.crm]", *told, ""]), encoding="utf-8")


def write_input(jobs):
    """Write a file of calls."""
    lines = [json.dumps({"custom_id": f"row-{n}", "method": "GET", "url": f"/{n}"}) for n in range(jobs)]
    Path("in.jsonl").write_text("\n".join([*lines, ""]), encoding="utf-8")


def call(*arguments, timeout_s=60, **environment):
    """Run the command to its end and return what it did."""
    command = [sys.executable, "-m", "callmill.cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, check=False, env={**os.environ, **environment}
    )


def run(workers=2, **environment):
    """Run the file."""
    return call("run", "in.jsonl", "-o", "out.jsonl", "--workers", str(workers), **environment)


def statuses():
    """Return the status of each line of the output, by the job's id."""
    lines = [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({line["custom_id"] for line in lines}) == len(lines)
    return {line["custom_id"]: line["response"]["status_code"] for line in lines}


def start(*arguments, **options):
    """Start the command as a process."""
    return subprocess.Popen([sys.executable, "-m", "callmill.cli", *arguments], text=True, **options)


def await_line(process, pattern):
    """Read a process's standard error up to a line that matches."""
    seen = []
    for line in process.stderr:
        seen.append(line)
        if re.search(pattern, line):
            return
    pytest.fail(f"no line {pattern!r} in {seen}")


def last_line(done):
    """Return the last line that a command printed to standard error."""
    return done.stderr.splitlines()[-1]


def holds():
    """Return what `callmill limits` says is held, now that no worker runs."""
    return [api["held"] for api in json.loads(call("limits", "--json").stdout) if api["held"]]


@contextmanager
def tls_server() -> Iterator[FaultyServer]:
    """Serve over TLS with a certificate of an authority that nobody knows."""

    async def answer(exchange):
        await exchange.answer()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    with faulty_server(answer, context) as running:
        yield running


class _Answer(BaseHTTPRequestHandler):
    """Answers every GET with 200."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        """Answer."""
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        """Say nothing."""


@contextmanager
def server_on(port) -> Iterator[None]:
    """Serve at a port."""
    with ThreadingHTTPServer(("127.0.0.1", port), _Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def test_wrong_key_costs_a_handful_of_calls_and_the_rest_goes_on_with_the_right_one(api):
    """A key that never worked is held, and the run ends with cause and remedy; with the right key it goes on."""
    write_profile(api.url, 'auth = { bearer = "env:CRM_TOKEN" }')
    write_input(JOBS)
    held = run(CRM_TOKEN="wrong")
    refused = len(api.arrivals)
    assert held.returncode == 2
    said = re.fullmatch(
        r"callmill: crm is held: (\d+) x 401 Unauthorized: check CRM_TOKEN\. (.*) jobs wait: .*", last_line(held)
    )
    assert int(said[1]) == refused <= MOST_CALLS
    failed = len(statuses())
    assert said[2] == f"{JOBS - failed:,}"
    assert set(statuses().values()) == {401}
    again = run(CRM_TOKEN="wrong")
    assert again.returncode == 2
    assert len(api.arrivals) <= refused + 1
    assert len(statuses()) == failed
    before = len(api.arrivals)
    done = run(CRM_TOKEN="right")
    assert done.returncode == 1, done.stderr
    assert len(api.arrivals) == before + JOBS - failed
    assert Counter(statuses().values()) == {401: failed, 200: JOBS - failed}
    assert not holds()


def test_api_that_wants_a_key_and_gets_none_is_held(api):
    """401 without any credential in the profile is held as well, and said so; a command releases it."""
    write_profile(api.url)
    write_input(JOBS)
    held = run()
    refused, failed = len(api.arrivals), len(statuses())
    assert held.returncode == 2
    assert f"crm is held: {refused} x 401 Unauthorized: crm has no auth in its profile" in last_line(held)
    assert refused <= MOST_CALLS
    assert holds() == [f"crm is held: {refused} x 401 Unauthorized: crm has no auth in its profile"]
    api.reply = lambda _target, _key: None
    resumed = call("limits", "resume", "crm")
    assert "was held: " in resumed.stdout
    assert not holds()
    assert run().returncode == 1
    assert Counter(statuses().values()) == {401: failed, 200: JOBS - failed}


@pytest.mark.parametrize("transport", ["pyreqwest", "requests"])
def test_hosts_that_cannot_be_reached_are_held(transport):
    """A name that does not resolve, a port that refuses, a certificate that nobody trusts: said, and nothing fails."""
    port = free_port()
    with tls_server() as tls:
        wrong = {
            "name": ("https://crm.exmaple.invalid", "crm.exmaple.invalid does not resolve: check base_url"),
            "port": (
                f"http://127.0.0.1:{port}",
                f"127.0.0.1:{port} accepts no connections: check base_url, and that the server is running",
            ),
            "trust": (
                f"https://localhost:{tls.port}",
                "the certificate of localhost is not trusted: check base_url, or set ca_file",
            ),
        }
        more = (f'transport = "{transport}"',)
        write_profiles(Path("apis.toml"), {api: [f'base_url = "{url}"', *more] for api, (url, _) in wrong.items()})
        rows = ({"custom_id": f"{n}", "method": "GET", "url": "/", "api": [*wrong][n % 3]} for n in range(JOBS))
        Path("in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        began_s = time.monotonic()
        held = run()
        assert held.returncode == 2
        said = [f"{api} is held: {line}" for api, (_, line) in wrong.items()]
        assert last_line(held).startswith(f"callmill: {'; '.join(said)}. {JOBS:,} jobs wait")
        assert time.monotonic() - began_s < ENDS_WITHIN_S
        assert statuses() == {}
        assert not tls.requests
        assert sorted(holds()) == sorted(said)


@pytest.mark.chaos
def test_server_that_starts_late_is_found():
    """A port that refuses at first is tried again: no job fails, and the run ends as if it had been there."""
    port = free_port()
    write_profile(f"http://127.0.0.1:{port}")
    write_input(JOBS)
    process = start("run", "in.jsonl", "-o", "out.jsonl", "--workers", "2", stderr=subprocess.PIPE)
    await_line(process, "api_held")
    with server_on(port):
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert Counter(statuses().values()) == {200: JOBS}
