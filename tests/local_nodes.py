"""Nodes of pytest-celery that are processes of this machine: a Redis server and our worker, without Docker.

A node of pytest-celery takes any container that starts, stops, is killed and shows its log; here a child process is
that container.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import celery
from pytest_celery import CeleryTestBroker, CeleryTestWorker

from callmill.config.server_binary import find_server_binary

_ASK_AGAIN_S = 0.02


def until(condition: Callable[[], Any], timeout_s: float = 20.0, what: str = "") -> Any:
    """Return the first true answer of ``condition``; fail when none comes in time."""
    deadline_s = time.monotonic() + timeout_s
    while not (answer := condition()):
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what or condition}"
        time.sleep(_ASK_AGAIN_S)
    return answer


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class LocalProcess:
    """A child process with a log, as a container of pytest-celery."""

    ready_prompt = ""
    celeryconfig: Mapping[str, Any] = {}

    def __init__(self, folder: Path) -> None:
        self.id = uuid.uuid4().hex
        self.name = f"{type(self).__name__}-{self.id[:6]}"
        self.folder = folder / self.name
        self.folder.mkdir(parents=True)
        self._log = self.folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def command(self) -> list[str]:
        """Return the program and its arguments."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """Return what is added to the environment."""
        return {}

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process of the latest start."""
        assert self._process is not None, "never started"
        return self._process

    @property
    def status(self) -> str:
        """``running`` or ``exited``."""
        return "running" if self._process and self._process.poll() is None else "exited"

    def start(self) -> Self:
        """Start the process; ``ready`` waits until it serves."""
        self._log_start = self._log.stat().st_size if self._log.exists() else 0
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CALLMILL_")}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={**environment, **self.environment()},
                start_new_session=True,
            )
        return self

    def ready(self, timeout_s: float = 30.0) -> bool:
        """Wait until the log of this start says that the process serves."""

        def serves() -> bool:
            assert self.status == "running", f"{self.name} ended:\n{self.logs()}"
            return self.ready_prompt in self.logs()[self._log_start :]

        return bool(until(serves, timeout_s, f"{self.name} ready"))

    def logs(self) -> str:
        """Return everything that was logged."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def send(self, number: signal.Signals) -> None:
        """Send a signal and return at once."""
        self.process.send_signal(number)

    def kill(self, signal: str | int = signal.SIGKILL) -> None:
        """Send a signal and wait for the end."""
        self.send(_number(signal))
        self.wait()

    def wait(self, timeout_s: float = 60.0) -> int:
        """Wait for the end and return the exit code."""
        return self.process.wait(timeout_s)

    def restart(self, timeout: float = 60) -> None:
        """End the process if it runs, and start it again."""
        if self.status == "running":
            self.kill(signal.SIGTERM)
        self.start().ready(timeout)

    def reload(self) -> None:
        """Nothing is cached."""

    def remove(self, *, force: bool = False) -> None:  # noqa: ARG002 - Docker's signature
        """End the process."""
        self.teardown()

    def teardown(self) -> None:
        """End the process, if need be by force."""
        if self.status != "running":
            return
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class RedisProcess(LocalProcess):
    """A Redis-compatible server; with ``durable`` it loses nothing that it acknowledged."""

    ready_prompt = "Ready to accept connections"

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        super().__init__(folder)
        self.port = free_port()
        self._durable = durable

    @property
    def url(self) -> str:
        """The server's URL."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def celeryconfig(self) -> Mapping[str, Any]:  # type: ignore[override]
        """How Celery reaches it."""
        return {"url": self.url, "host_url": self.url, "hostname": "127.0.0.1", "port": self.port, "vhost": "0"}

    def command(self) -> list[str]:
        """Return the server's command line."""
        durable = ["--appendonly", "yes", "--appendfsync", "always"] if self._durable else ["--appendonly", "no"]
        options = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder), "--save", "", *durable]
        return [str(find_server_binary()), *options]


class WorkerProcess(LocalProcess):
    """``celery -A callmill.workers worker``."""

    ready_prompt = " ready."
    celeryconfig: Mapping[str, Any] = {}

    def __init__(self, folder: Path, redis_url: str, apis: Path, settings: Mapping[str, object]) -> None:
        super().__init__(folder)
        self._redis_url = redis_url
        self._apis = apis
        self._settings = settings

    def command(self) -> list[str]:
        """Return the worker's command line."""
        options = ["worker", "-l", "INFO", "-n", f"{self.worker_name()}@{self.id[:12]}", "--without-mingle"]
        return [sys.executable, "-m", "celery", "-A", "callmill.workers", *options]

    def environment(self) -> dict[str, str]:
        """Return the worker's settings."""
        return {
            "CALLMILL_REDIS_URL": self._redis_url,
            "CALLMILL_APIS": str(self._apis),
            # The suite's common server is in memory only; what the check itself does has tests of its own.
            "CALLMILL_ALLOW_UNSAFE_REDIS": "1",
            "PYTHONUNBUFFERED": "1",
            **{f"CALLMILL_{name.upper()}": str(value) for name, value in self._settings.items()},
        }

    def worker_name(self) -> str:
        """Return the first part of the node's name."""
        return "callmill"

    def worker_queue(self) -> str:
        """Return the queue that every worker consumes."""
        return "calls"

    def log_level(self) -> str:
        """Return the level given on the command line."""
        return "INFO"

    def version(self) -> str:
        """Return Celery's version."""
        return str(celery.__version__)


class LocalBroker(CeleryTestBroker):
    """The Redis server as a node."""

    container: RedisProcess

    @property
    def url(self) -> str:
        """The server's URL."""
        return self.container.url


class LocalWorker(CeleryTestWorker):
    """One worker as a node."""

    container: WorkerProcess

    def send(self, number: signal.Signals) -> None:
        """Send a signal and return at once."""
        self.container.send(number)

    def wait(self, timeout_s: float = 60.0) -> int:
        """Wait for the worker's end and return its exit code."""
        return self.container.wait(timeout_s)


def write_profiles(path: Path, profiles: Mapping[str, Iterable[str]]) -> Path:
    """Write API profiles, each as lines of TOML, and return the path."""
    text = "".join(
        f"[apis.{name}]\nallow_private_addresses = true\n" + "\n".join(lines) + "\n" for name, lines in profiles.items()
    )
    path.write_text(text)
    return path


def _number(given: str | int) -> signal.Signals:
    return signal.Signals[given] if isinstance(given, str) else signal.Signals(given)
