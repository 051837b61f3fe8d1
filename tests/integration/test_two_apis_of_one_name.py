"""Two folders, one API name, two hosts, one embedded server: no call ever arrives at the wrong host."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from faulty_server import Exchange, faulty_server

from callmill.cli.client_session import with_batches
from callmill.cli.program import callmill
from callmill.config.embedded_server import running_url
from callmill.config.public_api import PublicApi
from callmill.config.settings import load_settings
from callmill.ledger.api_bindings import ApiBindings
from callmill.producer import AsyncClient

pytestmark = pytest.mark.long

PATIENCE_S = 60
JOBS = 400


class Host:
    """An API server that keeps what it was asked. Beyond ``most`` calls it answers none until it is let go."""

    def __init__(self) -> None:
        self.targets: list[str] = []
        self.most = 10 * JOBS
        self.url = ""

    async def answer(self, exchange: Exchange) -> None:
        """Take a call."""
        self.targets.append(exchange.target)
        while len(self.targets) > self.most:  # noqa: ASYNC110 - let go from another thread
            await asyncio.sleep(0.05)
        await exchange.answer()

    @contextmanager
    def serve(self) -> Iterator[Host]:
        """Serve on 127.0.0.1 until the block ends."""
        with faulty_server(self.answer) as self._server:
            self.url = self._server.url("").rstrip("/")
            yield self
            self.most = 10 * JOBS

    def settle(self) -> None:
        """Wait until it has everything that callers sent who are gone: it may be on its way when they end."""
        assert self._server.wait_until_open(0, PATIENCE_S)


class Folder:
    """A folder with a profile of the API ``crm`` at a host of its own, and a file of calls that name the folder."""

    def __init__(self, path: Path, api: Host) -> None:
        self.path = path
        self.api = api
        path.mkdir()
        self.profile(api.url)
        rows = [{"custom_id": f"r{n}", "method": "GET", "url": f"/{path.name}/{n}"} for n in range(JOBS)]
        (path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def profile(self, url: str, *more: str) -> None:
        """Write the profile."""
        lines = [f'base_url = "{url}"', "allow_private_addresses = true", 'limits = ["100/second"]', *more]
        (self.path / "apis.toml").write_text("\n".join(["[apis.crm]", *lines, ""]))

    def start(self, *arguments: str, **options) -> subprocess.Popen:
        """Start the command here."""
        command = [sys.executable, "-m", "callmill.cli", *arguments]
        return subprocess.Popen(command, cwd=self.path, text=True, **options)

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run the command here to its end."""
        command = [sys.executable, "-m", "callmill.cli", *arguments]
        return subprocess.run(
            command,
            cwd=self.path,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    @property
    def ids(self) -> list[str]:
        """The ids in the output of a run."""
        return sorted(json.loads(line)["custom_id"] for line in (self.path / "out.jsonl").read_text().splitlines())


@pytest.fixture
def folders(monkeypatch, tmp_path):
    """Make the folders a and b, on one embedded server; whatever still runs at the end is killed."""
    for variable in ("CALLMILL_REDIS_URL", "CALLMILL_BROKER_URL", "CALLMILL_LIMITER_URL", "CALLMILL_APIS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("CALLMILL_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("CALLMILL_SHUTDOWN_GRACE_S", "5")
    with Host().serve() as first, Host().serve() as second:
        yield Folder(tmp_path / "a", first), Folder(tmp_path / "b", second)
    server = tmp_path / "state" / "server.json"
    if server.exists() and running_url(load_settings()) is not None:
        os.kill(json.loads(server.read_bytes())["pid"], signal.SIGKILL)


@pytest.fixture
def ends():
    """End processes with the test."""
    with ExitStack() as stack:

        def end(process):
            if process.poll() is None:
                process.terminate()
            process.communicate(timeout=PATIENCE_S)

        yield lambda process: (stack.callback(end, process) and process) or process


def printed(*arguments: str) -> Any:
    """Run a command in this process, which is cheaper, and return the JSON that it prints."""
    return json.loads(CliRunner().invoke(callmill, arguments).stdout)


def status() -> dict:
    """Return what ``status`` says, which is the same everywhere."""
    return printed("status", "--json")


def await_true(condition, what):
    """Wait until a condition holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited too long: {what}"
        time.sleep(0.02)


def waits_elsewhere(a: Folder, b: Folder) -> bool:
    """Say whether ``status`` names both addresses where it tells what limits a batch."""
    words = [batch["limited_by"] or "" for batch in status()["batches"]]
    return any(a.api.url in word and b.api.url in word for word in words)


def workers_of(process) -> list[int]:
    """Return the workers that a run has started."""
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    children = [child for task in tasks for child in (task / "children").read_text().split()]
    return [int(child) for child in children if Path(f"/proc/{child}/cmdline").read_bytes().endswith(b"\0worker\0")]


def kill_with_workers(process) -> None:
    """Kill a run and its workers, as hard as can be."""
    workers = workers_of(process)
    assert len(workers) == 2
    for pid in (process.pid, *workers):
        os.kill(pid, signal.SIGKILL)
    process.wait()


def assert_no_call_astray(*folders):
    """Every request that a host got is one of its own folder."""
    for folder in folders:
        assert [target for target in folder.api.targets if not target.startswith(f"/{folder.path.name}/")] == []


@pytest.mark.chaos
def test_no_call_at_the_wrong_host(folders, ends):
    """A run that is killed, one in another folder, and ``up`` in the first meanwhile: 0 calls at the wrong host."""
    a, b = folders
    first = ends(a.start("run", "in.jsonl", "-o", "out.jsonl", "--workers", "2", stderr=subprocess.DEVNULL))
    await_true(lambda: len(a.api.targets) > 60, "calls of a")
    kill_with_workers(first)
    a.api.settle()
    made = len(a.api.targets)
    b.api.most = 60
    second = ends(b.start("run", "in.jsonl", "-o", "out.jsonl", "--workers", "2", stderr=subprocess.PIPE))
    await_true(lambda: len(b.api.targets) > 60, "calls of b")
    assert len(a.api.targets) == made, "b's workers left a's jobs alone"
    await_true(lambda: waits_elsewhere(a, b), "word of who waits for whom, once the killed workers count as gone")
    up = ends(a.start("up", "--workers", "1", "--no-dashboard", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    await_true(lambda: any(not worker["only_batch"] for worker in status()["workers"]), "the worker of up")
    os.kill(workers_of(second)[0], signal.SIGKILL)
    b.api.most = 10 * JOBS
    assert second.wait(PATIENCE_S) == 0, second.stderr.read()
    assert b.ids == sorted(f"r{n}" for n in range(JOBS))
    again = a.run("run", "in.jsonl", "-o", "out.jsonl")
    assert again.returncode == 0, again.stderr
    assert a.ids == b.ids
    assert up.poll() is None
    assert_no_call_astray(a, b)
    assert set(a.api.targets) == {f"/a/{n}" for n in range(JOBS)}


def up_there(folder: Folder, ends) -> subprocess.Popen:
    """Start ``up`` with one worker in a folder, and return when that worker is ready."""
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    up = ends(folder.start("up", "--workers", "1", "--no-dashboard", **silent))
    for line in up.stderr:
        if "ready, serves" in line:
            break
    return up


def test_profiles_that_differ_are_refused(folders, ends):
    """Beside ``up`` for another host, ``run``, ``submit`` and ``doctor`` name both and the remedy; nothing is left."""
    a, b = folders
    up_there(a, ends)
    await_true(lambda: status()["workers"], "a worker")
    for arguments in (["run", "in.jsonl", "-o", "out.jsonl"], ["submit", "in.jsonl"]):
        refused = b.run(*arguments)
        assert refused.returncode == 2
        assert f"crm is {b.api.url} in the local profiles, but the workers serve crm at {a.api.url}" in refused.stderr
        assert "rename" in refused.stderr
        assert "callmill apis move crm" in refused.stderr
    assert status()["batches"] == []
    assert not (b.path / "out.jsonl.callmill").exists()
    found = {finding["check"]: finding for finding in json.loads(b.run("doctor", "--json").stdout)}
    assert found["profiles"]["level"] == "fail"
    assert a.api.url in found["profiles"]["found"]
    assert b.run("run", "in.jsonl", "-o", "out.jsonl", "--workers", "1").returncode == 0, "workers of its own serve it"
    assert_no_call_astray(a, b)
    assert a.api.targets == []


def test_a_base_url_that_changes_on_purpose(folders, ends, monkeypatch):
    """The run is refused, naming both; after ``apis move``, which asks, the same command finishes it over there."""
    a, b = folders
    run = ("run", "in.jsonl", "-o", "out.jsonl", "--workers", "1")
    first = ends(a.start(*run, stderr=subprocess.DEVNULL))
    await_true(lambda: len(a.api.targets) > 30, "calls of a")
    first.send_signal(signal.SIGINT)
    first.wait(PATIENCE_S)
    made = set(a.api.targets)
    a.profile(b.api.url)
    refused = a.run(*run)
    assert refused.returncode == 2
    assert a.api.url in refused.stderr
    assert f"crm is {b.api.url} here" in refused.stderr
    assert "callmill apis move crm" in refused.stderr
    unasked = a.run("apis", "move", "crm")
    assert unasked.returncode == 2
    assert f"was made for crm at {a.api.url}: pass --yes to confirm" in unasked.stderr
    assert a.run("apis", "move", "crm", "--yes").returncode == 0
    monkeypatch.chdir(a.path)

    def moved():
        return {row["address"]: row for row in printed("apis", "--json")}[b.api.url]

    await_true(lambda: not moved()["workers"], "the end of the refused run's worker")
    assert (moved()["here"], len(moved()["batches"])) == (True, 1)
    again = a.run(*run)
    assert again.returncode == 0, again.stderr
    assert a.ids == sorted(f"r{n}" for n in range(JOBS))
    assert set(a.api.targets) == made, "nothing more arrives at the old one"
    assert made | set(b.api.targets) == {f"/a/{n}" for n in range(JOBS)}


async def leased(client: AsyncClient) -> int:
    """Return how many chunks workers hold."""
    return sum(bound.leased for bound in await ApiBindings(client.connection().session).unfinished())


async def waiting(client: AsyncClient) -> int:
    """Return how many calls wait in workers for their turn."""
    return sum(lane.waiting for worker in await client.connection().fleet.workers() for lane in worker.lanes)


@pytest.mark.chaos
def test_what_workers_hold_follows_a_move(folders, ends):
    """Workers of the old address start no further calls of chunks that they hold: the rest is done at the new one."""
    a, b = folders
    a.profile(a.api.url, "max_connections = 10")
    a.api.most = 30
    up = up_there(a, ends)
    assert a.run("submit", "in.jsonl").returncode == 0
    await_true(lambda: len(a.api.targets) == 40, "calls in flight that have no answer yet")
    moved = b.run("apis", "move", "crm", "--yes")
    assert moved.returncode == 0
    assert "calls in flight finish at the old address, the rest follows" in moved.stderr
    await_true(lambda: not with_batches(waiting), "the worker's word that no further call waits for its turn")
    a.api.most = 10 * JOBS
    await_true(lambda: not with_batches(leased), "the chunks that were given back")
    assert len(a.api.targets) == 40
    up.terminate()
    assert up.wait(PATIENCE_S) == 0
    up_there(b, ends)
    await_true(lambda: len(a.api.targets) + len(b.api.targets) >= JOBS, "every job")
    assert sorted(a.api.targets + b.api.targets) == sorted(f"/a/{n}" for n in range(JOBS))


@pytest.mark.chaos
def test_a_move_that_is_killed_holds_no_run_up(folders, ends):
    """Where a batch is bound to the new address and its chunks have not followed, the same command finishes it."""
    a, b = folders
    run = ("run", "in.jsonl", "-o", "out.jsonl", "--workers", "1")
    first = ends(a.start(*run, stderr=subprocess.DEVNULL))
    await_true(lambda: len(a.api.targets) > 30, "calls of a")
    first.send_signal(signal.SIGINT)
    first.wait(PATIENCE_S)
    made = set(a.api.targets)

    async def move_and_die(client: AsyncClient) -> None:
        bindings = ApiBindings(client.connection().session)
        (bound,) = await bindings.unfinished()
        (batch_id,) = bound.batches
        await bindings.bind(batch_id, "crm", PublicApi(name="crm", base_url=b.api.url).at)

    with_batches(move_and_die)
    a.profile(b.api.url)
    again = a.run(*run)
    assert again.returncode == 0, again.stderr
    assert a.ids == sorted(f"r{n}" for n in range(JOBS))
    assert set(a.api.targets) == made
    assert made | set(b.api.targets) == {f"/a/{n}" for n in range(JOBS)}
