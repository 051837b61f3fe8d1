"""``callmill watch`` and ``callmill status`` of everything, with a real Redis, a real worker and a real terminal."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass

import pytest
import redis
from click.testing import CliRunner
from local_nodes import LocalWorker, RedisProcess, WorkerProcess, until, write_profiles
from scripted_api import scripted_api
from tcp_forwarder import Forwarder
from terminal import Terminal

from callmill.cli.fleet_watch import watch_fleet
from callmill.cli.program import callmill
from callmill.config.celery import app
from callmill.config.redis_connections import connect
from callmill.errors import RedisUnavailableError
from callmill.ledger.fleet import Fleet
from callmill.ledger.session import LedgerSession
from callmill.producer import Batch, Client, Job

JOBS, WRONG = 40, 3
PATIENCE_S = 60


@dataclass
class Site:
    """A worker that has run a batch."""

    redis: RedisProcess
    worker: LocalWorker
    batch: Batch

    @property
    def environment(self) -> dict[str, str]:
        """Return what commands need to find it."""
        return {"CALLMILL_REDIS_URL": self.redis.url, "NO_COLOR": ""}


@pytest.fixture(scope="module")
def site(redis_server, tmp_path_factory):
    """Run a batch with a worker, some of its jobs failing."""
    folder = tmp_path_factory.mktemp("watch")
    with redis.Redis.from_url(redis_server.url) as connection:
        connection.flushall()
    with scripted_api() as api, Client(redis_server.url) as client:
        apis = write_profiles(folder / "apis.toml", {"near": [f'base_url = "{api.url}"', 'limits = ["500/second"]']})
        worker = LocalWorker(WorkerProcess(folder, redis_server.url, apis, {}).start(), app)
        try:
            worker.ready()
            jobs = [Job("GET", "/status/404" if n < WRONG else f"/fine/{n}", api="near") for n in range(JOBS)]
            batch = client.submit(jobs, name="translate-catalogue")
            batch.wait(timeout=PATIENCE_S)
            until(lambda: calls_told(redis_server.url) >= JOBS, what="the worker's report")
            yield Site(redis_server, worker, batch)
        finally:
            worker.teardown()


def calls_told(url):
    """Return how many calls the workers reported."""

    async def ask():
        async with connect(url) as connection:
            return sum(worker.calls for worker in await Fleet(LedgerSession(connection)).workers())

    return asyncio.run(ask())


@pytest.fixture(scope="module")
def terminal(site):
    """Watch everything in a terminal as people have it over ssh."""
    with Terminal("watch", columns=80, lines=24, environment=site.environment) as opened:
        opened.until(lambda lines: any("translate" in line for line in lines), PATIENCE_S)
        yield opened


@pytest.fixture
def _here(site, monkeypatch):
    monkeypatch.setenv("CALLMILL_REDIS_URL", site.redis.url)


def command(*arguments):
    """Run a command in the test's own process to its good end and return its output."""
    result = CliRunner().invoke(callmill, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_screen_agrees_with_the_ledger(site, terminal):
    """What stands on the screen of the batch, the API and the worker is what the ledger and the processes say."""
    lines = terminal.until(len)
    progress = site.batch.progress()
    (row,) = [line for line in lines if site.batch.id in line]
    assert row.split()[0] == progress.name[: len(row.split()[0]) - 1] + "…"
    assert row.split()[3:6] == [str(progress.done), str(progress.total), str(progress.failed)]
    assert (progress.done, progress.failed) == (JOBS, WRONG)
    assert any(line.startswith("near ") for line in lines)
    assert any(f"/{site.worker.container.process.pid} " in line for line in lines)
    assert lines[0].split("  ")[1].startswith("1 worker, ")
    assert "0 of 1 batch unfinished" in lines[0]


@pytest.mark.usefixtures("_here")
def test_a_pause_stands_first_while_it_lasts(terminal):
    """An API that is paused is told of at the top within seconds, and no longer than it is."""
    command("limits", "pause", "near", "--reason", "maintenance")
    terminal.until(lambda lines: lines and lines[1].startswith("! near is paused until resumed: maintenance ("))
    command("limits", "resume", "near")
    terminal.until(lambda lines: lines and not any("maintenance" in line for line in lines))


def test_another_size(terminal):
    """A window that changes its size has a screen of that size at once."""
    for columns, lines in ((50, 9), (132, 30), (80, 24)):
        terminal.resize(columns, lines)
        shown = terminal.until(len)
        assert {len(line) for line in shown} == {columns}


def test_ctrl_c_leaves_a_clean_terminal(site):
    """Ctrl-C ends it at once with exit code 0, the terminal set as before, its former content shown, its cursor too."""
    with Terminal("watch", columns=80, lines=24, environment=site.environment) as terminal:
        terminal.until(lambda lines: any("translate" in line for line in lines), PATIENCE_S)
        terminal.press_ctrl_c()
        assert terminal.wait(10) == 0
        assert terminal.output.count("\x1b[?1049h") == terminal.output.count("\x1b[?1049l") == 1
        assert terminal.output.rstrip().endswith("\x1b[?25h\x1b[?1049l")
        assert terminal.attributes() == terminal.before


def test_a_pipe_gets_plain_lines(site):
    """A pipe gets lines without control codes, until a signal ends it with exit code 0."""
    process = subprocess.Popen(
        [sys.executable, "-m", "callmill.cli", "watch"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **site.environment},
    )
    lines = [process.stdout.readline() for _ in range(3)]
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert "\x1b" not in "".join([*lines, rest])
    assert [line[21:].split("  ")[0] for line in lines] == ["all", "API", "worker"]


@pytest.mark.usefixtures("_here")
def test_status_is_the_same_as_data(site):
    """``status --json`` is one object with problems, batches, APIs and workers; ``status`` shows the same."""
    shown = json.loads(command("status", "--json"))
    assert list(shown) == [
        "at", "away", "problems", "batches", "unfinished", "batches_total", "apis", "workers", "redis",
    ]  # fmt: skip
    progress = site.batch.progress()
    (batch,) = shown["batches"]
    assert (batch["id"], batch["done"], batch["failed"]) == (progress.id, progress.done, progress.failed)
    assert [api["now"]["api"] for api in shown["apis"]] == ["near"]
    assert [worker["pid"] for worker in shown["workers"]] == [site.worker.container.process.pid]
    output = command("status")
    for part in (site.batch.id, "near", f"/{site.worker.container.process.pid}"):
        assert part in output
    assert "\x1b" not in output


class Notes:
    """Notes what it is to show."""

    def __init__(self):
        self._shown = asyncio.Queue()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def show(self, now):
        """Note it."""
        self._shown.put_nowait(now)

    def resized(self):
        """It has no size."""

    async def until(self, away):
        """Return the first that is shown with such a reason for being old."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                now = await self._shown.get()
                if away in now.away if away else not now.away:
                    return now


def test_a_redis_that_goes_and_comes_back(site, monkeypatch):
    """While Redis is cut off, or silent, that is said and the last figures stay; when it is back, they go on."""

    async def follow(forwarder):
        notes = Notes()
        watching = asyncio.create_task(watch_fleet(notes))
        before = await notes.until("")
        for reason, break_it in (("cannot be reached", lambda: forwarder.lead_to(None)), ("answer", forwarder.silence)):
            break_it()
            away = await notes.until(reason)
            assert (away.batches, away.at >= before.at) == (before.batches, True)
            forwarder.lead_to(site.redis.port)
            assert (await notes.until("")).at > away.at
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait_for(watching, PATIENCE_S)

    with Forwarder(site.redis.port) as forwarder:
        monkeypatch.setenv("CALLMILL_REDIS_URL", forwarder.url)
        asyncio.run(follow(forwarder))


def test_without_redis_at_the_start(monkeypatch):
    """A Redis that was never there is an error, not a screen without anything."""
    monkeypatch.setenv("CALLMILL_REDIS_URL", "redis://127.0.0.1:1")
    with pytest.raises(RedisUnavailableError):
        asyncio.run(watch_fleet(Notes()))


@pytest.mark.usefixtures("_here")
def test_the_newest_batch_can_be_followed(site):
    """``watch --newest`` follows the newest batch to its end, with its exit code; with an id as well it is refused."""
    result = CliRunner().invoke(callmill, ["watch", "--newest"])
    assert (result.exit_code, f"{JOBS} of {JOBS} done, {WRONG} failed" in result.stdout) == (1, True)
    assert CliRunner().invoke(callmill, ["watch", "--newest", site.batch.id]).exit_code == 2


@pytest.mark.usefixtures("_here")
def test_following_a_batch_outlasts_redis(site, tmp_path):
    """``watch BATCH`` says that Redis went away, goes on when it is back, and ends with the batch."""
    command("limits", "pause", "near")
    with Client(site.redis.url) as client, Forwarder(site.redis.port) as forwarder:
        batch = client.submit([Job("GET", "/", api="near")])
        said = tmp_path / "said"
        with said.open("wb") as standard_error:
            watching = subprocess.Popen(
                [sys.executable, "-m", "callmill.cli", "watch", batch.id, "--json"],
                env={**os.environ, **site.environment, "CALLMILL_REDIS_URL": forwarder.url},
                stdout=subprocess.PIPE,
                stderr=standard_error,
            )
        assert watching.stdout is not None
        with watching.stdout as lines:
            assert b'"running"' in lines.readline()
            forwarder.lead_to(None)
            until(lambda: b"goes on when it is back" in said.read_bytes(), PATIENCE_S)
            forwarder.lead_to(site.redis.port)
            batch.cancel()
            states = [json.loads(line)["state"] for line in lines]
        assert (states[-1], watching.wait(PATIENCE_S)) == ("cancelled", 1)
    command("limits", "resume", "near")
