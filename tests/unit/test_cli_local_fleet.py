"""LocalFleet: children are started again, or not, and never outlive the fleet."""

from __future__ import annotations

import os
import queue
import select
import signal
import subprocess
import sys

import pytest

from callmill.cli.local_fleet import LocalFleet, Program


@pytest.fixture
def fleet(monkeypatch, tmp_path):
    """Make fleets whose lines come through a queue."""
    for variable in ("CALLMILL_REDIS_URL", "CALLMILL_BROKER_URL", "CALLMILL_LIMITER_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("CALLMILL_STATE_DIR", str(tmp_path))
    made = []

    def make(*arguments):
        lines: queue.Queue[str] = queue.Queue()
        fleet = LocalFleet([Program("child", arguments)], grace_s=5, say=lines.put)
        made.append(fleet)
        fleet.start()
        return fleet, lines

    yield make
    for fleet in made:
        fleet.stop()


def await_line(lines, part):
    """Wait for a line that has this in it."""
    while part not in (line := lines.get(timeout=20)):
        pass
    return line


def test_dead_child_is_started_again(fleet):
    """A child that ends is started again, after longer each time, and each event is said."""
    _, lines = fleet("status")
    assert "ended with exit code 1; starting it again in 0.5 s" in await_line(lines, "starting it again")
    assert "starting it again in 1 s" in await_line(lines, "starting it again")


def test_wrong_configuration_is_final(fleet):
    """A child that finds its configuration wrong is not started again; its last line says why."""
    running, lines = fleet("status", "--limit", "none")
    await_line(lines, "is not started again")
    assert "is not a valid integer" in running.failure


def test_programs_change_while_it_runs(fleet):
    """What is named anew is started, what is named no more is asked to end and never started again, the rest stays."""
    running, lines = fleet("simulate", "--port", "0")
    await_line(lines, "Simulator on")
    (first,) = running.pids
    more = [Program("child", ()), Program("other", ("simulate", "--port", "0"))]
    running.run(more)
    assert running.names == ["child", "other"]
    await_line(lines, "Simulator on")
    assert len(running.pids) == 2
    running.run(more[1:])
    assert running.names == ["other"]
    assert await_line(lines, "as asked") == f"child (process {first}) ended with exit code 0, as asked"
    running.run([Program("child", ("simulate", "--port", "0"))])
    missing = {"other", "Simulator"}  # in either order, with what else the simulator says
    while missing:
        missing.discard(lines.get(timeout=20).split()[0])
    assert first not in running.pids


def test_who_does_not_end_is_killed(fleet, monkeypatch):
    """A child that ignores that it should end is killed when its time is over."""
    monkeypatch.setattr("callmill.cli.local_fleet.KILL_AFTER_GRACE_S", -5.0)
    running, lines = fleet("simulate", "--port", "0")
    await_line(lines, "Simulator on")
    os.kill(running.pids[0], signal.SIGSTOP)
    running.run([])
    assert "was ended by SIGKILL, as asked" in await_line(lines, "as asked")


def test_child_ends_with_its_parent(tmp_path):
    """A child ends by itself when its parent is killed -9."""
    program = (
        "import os, sys, time\n"
        "from callmill.cli.local_fleet import LocalFleet, Program\n"
        "fleet = LocalFleet([Program('child', ('simulate', '--port', '0'))], grace_s=5, say=print)\n"
        "fleet.start(); print(fleet.pids[0], flush=True)\n"
        "while True: time.sleep(1)\n"
    )
    parent = subprocess.Popen([sys.executable, "-u", "-c", program], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    child = os.pidfd_open(int(parent.stdout.readline()))
    assert "Simulator on" in parent.stdout.readline()
    parent.kill()
    parent.communicate(timeout=20)
    ended = select.select([child], [], [], 20)[0]
    os.close(child)
    assert ended
