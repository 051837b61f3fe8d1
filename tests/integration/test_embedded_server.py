"""The embedded server: found, started once, and never a loss."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections import deque
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from redis.exceptions import AuthenticationError, ResponseError

from callmill.cli.embedded_session import EmbeddedSession
from callmill.config import server_home
from callmill.config.embedded_server import broker_url, limiter_url, redis_url, running_url, start
from callmill.config.file_lock import is_locked
from callmill.config.redis_connections import connect_blocking
from callmill.config.settings import load_settings
from callmill.errors import ConfigurationError, RedisUnavailableError, ServerNotFoundError

STARTER = """import json, os, sys
from callmill.config.embedded_server import start
from callmill.config.settings import load_settings
print('ready', flush=True)
sys.stdin.readline()
server = start(load_settings())
print(json.dumps({"pid": server.pid, "owned": server.owned}), flush=True)
"""


def _starter(program):
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """Settings with a state directory of the test's own, in a path that needs quoting."""
    for variable in ("CALLMILL_REDIS_URL", "CALLMILL_BROKER_URL", "CALLMILL_LIMITER_URL", "CALLMILL_REDIS_SERVER"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("CALLMILL_STATE_DIR", str(tmp_path / 'state "of" mine'))
    settings = load_settings()
    yield settings
    if is_locked(settings.state_dir / "redis" / "alive.lock"):
        os.kill(start(settings).pid, signal.SIGKILL)


def kill(server):
    """Kill a server as hard as can be and wait until the kernel has taken it away."""
    process = os.pidfd_open(server.pid)
    os.kill(server.pid, signal.SIGKILL)
    assert select.select([process], [], [], 10)[0]
    os.close(process)


def test_start_and_stop(settings):
    """A started server serves with an append-only file and no eviction; stopped, it is gone; stopping again is fine."""
    server = start(settings)
    with closing(connect_blocking(server.url)) as client:
        asked = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "save": ""}
        assert client.config_get(*asked) == asked
        assert client.config_get("bind") == {"bind": "127.0.0.1"}
    assert server.owned
    assert running_url(settings) == server.url
    server.stop()
    assert running_url(settings) is None
    assert not (settings.state_dir / "server.json").exists()
    server.stop()


def test_reuse(settings):
    """A second start gives the running server, and only its starter may stop it."""
    server, again = start(settings), start(settings)
    assert (again.pid, again.url, again.owned) == (server.pid, server.url, False)
    again.stop()
    assert running_url(settings) == server.url
    server.stop()


def test_kill_and_restart_lose_nothing(settings):
    """After kill -9 of the server, a new start serves the data that was on disk, at the same URL."""
    server = start(settings)
    with closing(connect_blocking(server.url)) as client:
        client.set("key", "value")
        client.waitaof(1, 0, 5000)
        kill(server)
        assert running_url(settings) is None
        restarted = start(settings)
        assert restarted.owned
        assert restarted.pid != server.pid
        assert restarted.url == server.url
    with closing(connect_blocking(restarted.url)) as client:
        assert client.get("key") == b"value"
    server.stop()
    assert running_url(settings) == restarted.url, "the owner of the dead server must not stop the new one"
    restarted.stop()


def test_address_survives_an_instant_restart(settings):
    """A start that comes while the kernel still clears away the dead server gets the same address."""
    server = start(settings)
    os.kill(server.pid, signal.SIGKILL)
    with (settings.state_dir / "redis" / "alive.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
    assert start(settings).url == server.url


def test_stop_flushes(settings):
    """A stop is an orderly end, and what was written just before it is there after the next start."""
    server = start(settings)
    with closing(connect_blocking(server.url)) as client:
        client.mset({f"key-{n}": n for n in range(1000)})
    server.stop()
    assert "ready to exit" in (settings.state_dir / "redis" / "server.log").read_text()
    server = start(settings)
    with closing(connect_blocking(server.url)) as client:
        assert client.dbsize() == 1000
    server.stop()


@pytest.mark.usefixtures("settings")
def test_concurrent_starters_make_one_server():
    """Of several processes that start at the same time exactly one starts the server, and all get the same."""
    with ExitStack() as stack:
        starters = [stack.enter_context(_starter(STARTER)) for _ in range(4)]
        for starter in starters:
            assert starter.stdout.readline() == "ready\n"
        for starter in starters:
            starter.stdin.write("go\n")
            starter.stdin.flush()
        answers = [json.loads(starter.stdout.readline()) for starter in starters]
    assert len({answer["pid"] for answer in answers}) == 1
    assert sorted(answer["owned"] for answer in answers) == [False, False, False, True]


def test_server_outlives_its_starter(settings):
    """Kill -9 of the process group that started the server, and the end of its forks, leave the server running."""
    program = STARTER + "\nif os.fork(): sys.stdin.read()\n"
    with _starter(program) as starter:
        starter.stdin.write("go\n")
        starter.stdin.flush()
        assert starter.stdout.readline() == "ready\n"
        pid = json.loads(starter.stdout.readline())["pid"]
        os.killpg(starter.pid, signal.SIGKILL)
    assert running_url(settings) is not None
    server = start(settings)
    assert (server.pid, server.owned) == (pid, False)


def test_starter_that_died_before_publishing(settings):
    """A server whose file was never written, or was lost or damaged, is found again and not started twice."""
    server = start(settings)
    for damage in (Path.unlink, lambda path: path.write_text("{")):
        damage(settings.state_dir / "server.json")
        assert running_url(settings) is None
        again = start(settings)
        assert (again.pid, again.url, again.owned) == (server.pid, server.url, False)
        assert running_url(settings) == server.url


def test_port_taken_by_a_stranger(settings):
    """A stranger on the dead server's port is not mistaken for it, and the data are served at a new port."""
    server = start(settings)
    with closing(connect_blocking(server.url)) as client:
        client.set("key", "value")
        client.waitaof(1, 0, 5000)
        port = client.get_connection_kwargs()["port"]
    kill(server)
    with socket.create_server(("127.0.0.1", port)):
        assert running_url(settings) is None
        with pytest.raises(ServerNotFoundError):
            redis_url(settings)
        restarted = start(settings)
    assert restarted.url != server.url
    with closing(connect_blocking(restarted.url)) as client:
        assert client.get("key") == b"value"
    restarted.stop()


def test_busy_server_is_not_started_twice(settings, monkeypatch):
    """A server that lives but does not answer counts as running, and no second one gets at its data."""
    monkeypatch.setattr(server_home, "ANSWER_TIMEOUT_S", 0.1)
    monkeypatch.setattr(server_home, "START_TIMEOUT_S", 0.3)
    server = start(settings)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        assert running_url(settings) == server.url
        with pytest.raises(RedisUnavailableError, match="does not answer"):
            start(settings)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert start(settings).pid == server.pid


def test_password_is_private(settings):
    """The password is in files of mode 0600 only: not in the process list, nor in the server's text."""
    server = start(settings)
    password = server.url.split(":")[2].split("@")[0]
    assert len(password) == 64
    assert password.encode() not in Path(f"/proc/{server.pid}/cmdline").read_bytes()
    assert password not in repr(server)
    files = [path for path in settings.state_dir.rglob("*") if path.is_file()]
    holders = [path for path in files if password.encode() in path.read_bytes()]
    assert {path.name for path in holders} == {"server.json", "server.conf"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in holders} == {0o600}
    assert stat.S_IMODE(settings.state_dir.stat().st_mode) == 0o700
    with closing(connect_blocking(server.url.replace(password, "wrong"))) as client, pytest.raises(AuthenticationError):
        client.ping()


def test_server_does_not_keep_secrets_of_its_starter(settings, monkeypatch, tmp_path):
    """The environment of whoever starts the server, with its API keys, does not reach the server."""
    program = tmp_path / "server"
    program.write_text(f"#!/bin/sh\nenv > '{tmp_path}/environment'\nexit 1\n")
    program.chmod(0o700)
    monkeypatch.setenv("CALLMILL_REDIS_SERVER", str(program))
    monkeypatch.setenv("SOME_API_KEY", "hunter2")
    with pytest.raises(RedisUnavailableError, match="does not start"):
        start(settings)
    environment = (tmp_path / "environment").read_text()
    assert "PATH=" in environment
    assert "hunter2" not in environment


def test_which_server_is_used(settings, monkeypatch):
    """A URL that is set wins; else the embedded server serves all three; with neither, the error has both remedies."""
    for url_of in (redis_url, broker_url, limiter_url):
        with pytest.raises(ServerNotFoundError, match=r"CALLMILL_REDIS_URL.*callmill up"):
            url_of(settings)
    server = start(settings)
    assert {redis_url(settings), broker_url(settings), limiter_url(settings)} == {server.url}
    monkeypatch.setenv("CALLMILL_LIMITER_URL", "redis://limiter")
    own = load_settings(redis_url="redis://ledger")
    assert (redis_url(own), broker_url(own), limiter_url(own)) == (
        "redis://ledger",
        "redis://ledger",
        "redis://limiter",
    )


def test_programs_that_do_not_serve(settings, monkeypatch):
    """A missing program is the variable's fault; one that ends at once is an error that says what it said."""
    monkeypatch.setenv("CALLMILL_REDIS_SERVER", "/no/such/program")
    with pytest.raises(ConfigurationError, match=r"CALLMILL_REDIS_SERVER: '/no/such/program'"):
        start(settings)
    for program in ("false", "true"):
        monkeypatch.setenv("CALLMILL_REDIS_SERVER", program)
        with pytest.raises(RedisUnavailableError, match="does not start"):
            start(settings)
    monkeypatch.delenv("CALLMILL_REDIS_SERVER")
    start(settings).stop()


def test_state_directory_that_cannot_be_used(monkeypatch, tmp_path):
    """A state directory that is a file is the variable's fault, and no server is said to run there."""
    monkeypatch.delenv("CALLMILL_REDIS_URL", raising=False)
    (tmp_path / "file").touch()
    monkeypatch.setenv("CALLMILL_STATE_DIR", str(tmp_path / "file"))
    with pytest.raises(ConfigurationError, match="CALLMILL_STATE_DIR"):
        start(load_settings())
    assert running_url(load_settings()) is None


def test_no_rush_to_find_nothing(settings):
    """Finding that no server runs takes no time: it is asked at every start of a client."""
    started = time.monotonic()
    assert running_url(settings) is None
    assert time.monotonic() - started < 0.5


def test_a_removed_directory_leaves_no_server(settings, caplog):
    """Where the directory is removed under a session, its server goes on until the session ends, and is not left."""
    with EmbeddedSession(settings) as session:
        with closing(connect_blocking(running_url(settings))) as client:
            descriptor = os.pidfd_open(client.info("server")["process_id"])
        shutil.rmtree(settings.state_dir)
        assert (session.ensure(), session.ensure()) == (False, False)
        assert caplog.text.count("was removed while the embedded server worked on it") == 1
    assert select.select([descriptor], [], [], 10)[0], "the server is left"
    os.close(descriptor)
    assert not settings.state_dir.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_server_on_a_full_disk_is_found(settings):
    """A server that cannot write its file any more is still found, is not started twice, and ends when it should."""
    libc = ctypes.CDLL(None, use_errno=True)
    settings.state_dir.mkdir()
    place = os.fsencode(settings.state_dir)
    if libc.mount(b"tmpfs", place, b"tmpfs", 0, b"size=256k"):
        pytest.skip(f"no disk can be mounted: {os.strerror(ctypes.get_errno())}")
    try:
        server = start(settings)
        with closing(connect_blocking(server.url)) as client:
            with pytest.raises(ResponseError, match="MISCONF"):
                deque(client.set(str(number), "x" * 1000) for number in range(10_000))
            assert running_url(settings) == server.url
            assert start(settings).pid == server.pid
        start(settings)
        os.kill(server.pid, signal.SIGKILL)
        descriptor = os.pidfd_open(server.pid)
        select.select([descriptor], [], [], 10)
        os.close(descriptor)
    finally:
        libc.umount2(place, 2)
