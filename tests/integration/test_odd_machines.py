"""Machines that lack what others have: few files, no IPv6, no home, a proxy that leads nowhere, an old environment."""

from __future__ import annotations

import errno
import json
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from local_nodes import WorkerProcess, write_profiles
from scripted_api import scripted_api

from callmill.cli.program import callmill
from callmill.config.embedded_server import running_url
from callmill.config.server_home import usable
from callmill.config.settings import load_settings
from callmill.errors import ConfigurationError
from callmill.producer import Client, Job
from callmill.workers.file_descriptors import calls_at_once

ROOT = Path(__file__).parents[2]
PATIENCE_S = 40
FEW_FILES = "import os, resource, sys; n = int(sys.argv[1]); resource.setrlimit(resource.RLIMIT_NOFILE, (n, n))"
FEW_FILES += "; os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
NO_IPV6 = """
import socket
class Socket(socket.socket):
    def __init__(self, family=-1, *rest, **named):
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        super().__init__(family, *rest, **named)
socket.socket = Socket
"""


class SmallWorker(WorkerProcess):
    """A worker that may open few files."""

    files = 0

    def command(self) -> list[str]:
        """Return the worker's command line, behind a program that lowers the hard limit."""
        python, *rest = super().command()
        return [python, "-c", FEW_FILES, str(self.files), *rest]


@pytest.mark.parametrize("files", [1024, 256])
def test_a_worker_fits_into_the_files_that_it_may_open(redis_url, tmp_path, files):
    """Asked for more calls at once than it may open files, a worker says how many it makes, and every call succeeds."""
    with scripted_api() as api:
        profile = [f'base_url = "{api.url}"', "max_connections = 1500"]
        worker = SmallWorker(tmp_path, redis_url, write_profiles(tmp_path / "apis.toml", {"near": profile}), {})
        worker.files = files
        try:
            worker.start().ready()
            possible = calls_at_once([1000], files).possible
            assert (
                f"may open {files} files but needs 1084: at most {possible} calls of one API at once" in worker.logs()
            )
            with Client(redis_url) as client:
                batch = client.submit(Job("GET", "/wait/0.2", api="near") for _ in range(2 * files))
                progress = batch.wait(PATIENCE_S)
            assert (progress.succeeded, progress.retries) == (2 * files, 0)
        finally:
            worker.teardown()


def test_too_few_files_for_any_call_are_said(redis_url, tmp_path):
    """A worker that could not open a connection for each API ends at once, and says what to raise."""
    apis = write_profiles(tmp_path / "apis.toml", {"local": ['base_url = "http://127.0.0.1:9"']})
    worker = SmallWorker(tmp_path, redis_url, apis, {})
    worker.files = 64
    worker.start()
    assert worker.wait(PATIENCE_S) != 0
    assert "this process may open 64 files, but needs at least 85" in worker.logs()
    assert "ulimit -Hn" in worker.logs()


@pytest.mark.parametrize("limit", [None, 20_000, 1024, 256, 97])
@pytest.mark.parametrize("wanted", [[500], [500, 500, 500], [1000, 5, 20], [1]])
def test_calls_at_once_use_what_may_be_opened(wanted, limit):
    """APIs that want little get it, the others equal parts, and nothing that would fit is left."""
    calls = calls_at_once(wanted, limit)
    besides = calls.files - sum(wanted)
    taken = sum(min(one, calls.possible) for one in wanted)
    if limit is None or calls.files <= limit:
        assert calls.possible == max(wanted)
    else:
        assert 0 < taken <= limit - besides < sum(min(one, calls.possible + 1) for one in wanted)


def test_a_run_on_an_odd_machine(tmp_path):
    """256 files, no IPv6, no home, a dead proxy, a C locale, a tight umask, a space in the path: every call is made."""
    folder = tmp_path / "call mill"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(NO_IPV6)
    (folder / "calls.jsonl").write_text(
        "".join(f'{{"custom_id":"{n}","method":"GET","url":"/{n}"}}\n' for n in range(50))
    )
    dead = dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    odd = {"HOME": "/dev/null", "LC_ALL": "C", "TERM": "dumb", "TZ": "Asia/Kathmandu", "PYTHONPATH": str(folder)}
    with scripted_api() as api:
        write_profiles(folder / "apis.toml", {"local": [f'base_url = "{api.url}"']})
        ours = {"CALLMILL_STATE_DIR": str(folder / "state"), "CALLMILL_APIS": str(folder / "apis.toml")}
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                FEW_FILES,
                "256",
                "-m",
                "callmill.cli",
                "run",
                "calls.jsonl",
                "-o",
                "out.jsonl",
                "--workers",
                "1",
            ],
            cwd=folder,
            env=os.environ | dead | odd | ours,
            umask=0o077,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert len((folder / "out.jsonl").read_text().splitlines()) == 50


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "all_proxy"])
def test_doctor_tells_that_a_proxy_is_ignored(monkeypatch, tmp_path, variable):
    """Whoever expects a proxy of the environment to be used is told that calls go out directly."""
    monkeypatch.setenv(
        "CALLMILL_APIS", str(write_profiles(tmp_path / "apis.toml", {"crm": ['base_url = "https://a.b"']}))
    )
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    findings = json.loads(CliRunner().invoke(callmill, ["doctor", "--json"]).output)
    (found,) = (finding for finding in findings if finding["check"] == "proxy")
    assert (found["level"], found["found"]) == ("warn", f"{variable}: ignored; calls go directly to the APIs")


@pytest.mark.parametrize("home", ["/dev/null", "/proc/nothing"])
@pytest.mark.parametrize("command", [["run", "calls.jsonl", "-o", "out.jsonl"], ["up"], ["status"], ["doctor"]])
def test_a_home_that_cannot_be_written(monkeypatch, tmp_path, home, command):
    """Commands end with a message, never with a traceback; those that need the directory name it and the remedy."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", home)
    monkeypatch.delenv("CALLMILL_APIS", raising=False)
    write_profiles(tmp_path / "apis.toml", {"local": ['base_url = "http://127.0.0.1:9"']})
    (tmp_path / "calls.jsonl").write_text('{"custom_id":"1","method":"GET","url":"/1"}\n')
    done = CliRunner().invoke(callmill, command)
    assert isinstance(done.exception, SystemExit)
    assert done.exit_code in {1, 2}
    if command[0] in {"run", "up"}:
        assert f"CALLMILL_STATE_DIR: {home}/.local/state/callmill cannot be used" in done.output
        assert "name a directory that you can write to" in done.output


def test_a_user_without_a_home(monkeypatch):
    """Where nobody knows the user's home, the embedded server has the system's directory; ~ in a setting is refused."""

    def unknown(_: int) -> None:
        raise KeyError

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert load_settings().state_dir == Path("/var/lib/callmill")
    assert running_url(load_settings()) is None
    monkeypatch.setenv("CALLMILL_STATE_DIR", "~/state")
    with pytest.raises(ConfigurationError, match=r"CALLMILL_STATE_DIR.*write the full path"):
        load_settings()


def test_a_full_disk_is_named(tmp_path):
    """A state directory on a full disk is told as such: room is wanted, not another directory."""
    with pytest.raises(ConfigurationError, match=rf"{tmp_path} cannot be used: .*; free space"), usable(tmp_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_terminal_that_lacks_a_character(client, redis_url):
    """A name that the terminal's encoding does not have is shown without it; JSON has it all the same."""
    batch = client.submit([Job("GET", "/", api="nobody")], name="Übersetzung")

    def status(*options: str) -> bytes:
        environment = os.environ | {"CALLMILL_REDIS_URL": redis_url, "PYTHONIOENCODING": "ascii"}
        command = [sys.executable, "-m", "callmill.cli", "status", batch.id, *options]
        return subprocess.run(command, env=environment, capture_output=True, timeout=PATIENCE_S, check=True).stdout

    assert b"?bersetzung" in status()
    assert json.loads(status("--json"))["name"] == "Übersetzung"


def test_an_old_environment_is_made_anew(tmp_path):
    """Make keeps the .venv that it made, also below a space; moved, or of a Python that is gone, it is replaced."""
    if shutil.which("make") is None:
        pytest.skip("no make")
    here = tmp_path / "call mill"
    here.mkdir()
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, here)
    shutil.copytree(ROOT / "requirements", here / "requirements")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", ".venv"], cwd=here, check=True, timeout=PATIENCE_S)
    (packages,) = (here / ".venv/lib").glob("python*/site-packages")
    (packages / "pip.py").touch()
    for stamp in (".installed", ".installed-dev"):
        (here / ".venv" / stamp).touch()

    def plan(folder: Path) -> str:
        done = subprocess.run(
            ["make", "-n", "test"], cwd=folder, capture_output=True, text=True, check=True, timeout=20
        )
        return done.stdout

    assert "-m pytest" in plan(here)
    assert "rm -rf" not in plan(here)
    moved = here.rename(tmp_path / "elsewhere")
    assert "rm -rf .venv" in plan(moved)
    back = moved.rename(here)
    assert "rm -rf" not in plan(back)
    (back / ".venv/bin/python").unlink()
    (back / ".venv/bin/python").symlink_to("/nonexistent/python3")
    assert "rm -rf .venv" in plan(back)
