"""Real workers that come and go with the work, or when somebody asks: nothing is lost, nothing is repeated."""

from __future__ import annotations

import json
import queue
import re
import signal
import subprocess
import sys
import threading

import pytest
from click.testing import CliRunner
from local_nodes import until, write_profiles
from metrics_kit import Exported, get

from callmill.cli.program import callmill
from callmill.producer import Job
from callmill.simulator import SimulatorOptions, SimulatorProcess
from callmill.simulator.latency import parse_latency


@pytest.fixture(scope="module")
def simulator():
    """Run an API that takes 200 ms for an answer, and any number of calls."""
    with SimulatorProcess(SimulatorOptions(latency=parse_latency("200ms"))) as process:
        yield process


@pytest.fixture
def site(monkeypatch, tmp_path, redis_url, client, simulator):
    """Work on an empty Redis, with a profile of that API; a process makes 20 calls at once: 100 a second."""
    simulator.reset()
    apis = write_profiles(tmp_path / "apis.toml", {"api": [f'base_url = "{simulator.url}"']})
    sizes = {"CALLS_IN_FLIGHT": 20, "CHUNKS_PER_PROCESS": 2}
    variables = {"REDIS_URL": redis_url, "APIS": apis, "ALLOW_UNSAFE_REDIS": 1, **sizes}
    for name, value in variables.items():
        monkeypatch.setenv(f"CALLMILL_{name}", str(value))
    return Site(client, simulator)


class Site:
    """A client, and the API that counts its calls."""

    def __init__(self, client, simulator) -> None:
        self._client = client
        self._simulator = simulator

    def submit(self, jobs: int):
        """Submit a batch and return it."""
        return self._client.submit(Job("GET", f"/rows/{n}", api="api", id=str(n)) for n in range(jobs))

    def assert_each_once(self, batch, jobs: int) -> None:
        """Every job has its one outcome, and the API saw every call once."""
        assert sorted(int(outcome.id) for outcome in batch.outcomes()) == list(range(jobs))
        progress = batch.progress()
        assert (progress.succeeded, progress.calls) == (jobs, jobs)
        assert self._simulator.stats()["accepted"] == jobs


class Command:
    """A command of Callmill as a process, its lines as they come."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "callmill.cli", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def line(self, pattern: str) -> re.Match[str]:
        """Wait for a line that matches."""
        seen = []
        while True:
            try:
                seen.append(self._lines.get(timeout=40))
            except queue.Empty:
                pytest.fail(f"no line {pattern!r} in {seen}")
            if match := re.search(pattern, seen[-1]):
                return match

    def lines(self) -> list[str]:
        """Return what came since."""
        return [self._lines.get() for _ in range(self._lines.qsize())]

    def end(self) -> int:
        """Ask it to end, and return its exit code."""
        self.process.terminate()
        code = self.process.wait(40)
        self._reader.join(10)
        return code

    def _read(self) -> None:
        with self.process.stdout as lines:
            for line in lines:
                self._lines.put(line.rstrip())


@pytest.fixture
def start():
    """Start commands that end with the test."""
    commands = []

    def started(*arguments: str) -> Command:
        commands.append(Command(*arguments))
        return commands[-1]

    yield started
    for command in commands:
        if command.process.poll() is None:
            command.end()


def test_workers_follow_the_work(start, site):
    """From nobody to one that measures, to as many as may be, and back to nobody: all jobs done, each called once."""
    batch = site.submit(700)
    command = start("autoscale", "--local", "--max", "2", "--within", "2s", "--down-after", "2s")
    assert "no worker ever ran" in command.line(r"workers: 0 -> 1 \((.*)\)")[1]
    assert "backlog of api" in command.line(r"workers: 1 -> 2 \((.*)\)")[1]
    command.line(r"workers: \d -> 0 \(nothing to do")
    until(lambda: any("worker 1" in line and "exit code 0, as asked" in line for line in command.lines()), 40)
    site.assert_each_once(batch, 700)
    assert command.end() == 0


@pytest.mark.chaos
def test_up_takes_and_gives_back_workers_by_signals(start, site):
    """SIGTTIN adds a worker and SIGTTOU ends it under load: it finishes its calls, and the other one does the rest."""
    up = start("up", "--workers", "1", "--no-dashboard")
    up.line("ready, serves api")
    up.process.send_signal(signal.SIGTTIN)
    up.line(r"workers: 1 -> 2 \(as asked\)")
    up.line("ready, serves api")
    batch = site.submit(600)
    until(lambda: batch.progress().done > 100, what="both work")
    up.process.send_signal(signal.SIGTTOU)
    up.line(r"[1-9]\d* put back")
    up.line(r"worker 2 \(process \d+\) ended with exit code 0, as asked")
    batch.wait(timeout=40)
    site.assert_each_once(batch, 600)
    assert up.end() == 0


def test_number_is_told_and_served(start, site):
    """Without a worker the number for what waits is told, as a table, as JSON, and to those who ask by HTTP."""
    site.submit(10)
    table = CliRunner().invoke(callmill, ["autoscale"]).output
    assert table.startswith("1 worker wanted, 0 at work: no worker ever ran")
    two = told("--min", "2")
    assert (two["wanted"], two["wanted_now"], two["workers"]) == (2, 2, 0)
    served = start("autoscale", "--serve", "0")
    url = served.line(r"Workers wanted on (http://127.0.0.1:\d+/workers-wanted)")[1]
    assert json.loads(get(url).text)["wanted"] == 1
    assert Exported(get(url.replace("workers-wanted", "metrics")).text).value("callmill_workers_wanted") == 1
    assert get(url.replace("workers-wanted", "healthz")).status == 200
    assert served.end() == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["autoscale", "--watch", "--local"], "choose one of"),
        (["autoscale", "--min", "3", "--max", "2"], "--max 2 is less than --min 3"),
        (["autoscale", "--within", "0s"], "--within: more than 0"),
        (["up", "--workers", "8-1"], "the smaller number first"),
        (["up", "--workers", "some"], "as in '1-8'"),
    ],
)
def test_wrong_numbers_are_refused(arguments, said):
    """What cannot be meant is a usage error that says what can."""
    refused = CliRunner().invoke(callmill, arguments)
    assert refused.exit_code == 2
    assert said in refused.output


def told(*arguments: str):
    """Return what ``callmill autoscale`` says as JSON."""
    return json.loads(CliRunner().invoke(callmill, ["autoscale", "--json", *arguments]).output)
