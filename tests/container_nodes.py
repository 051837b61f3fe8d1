"""Nodes of pytest-celery that are containers: Redis, and the image that the checkout builds, on the host's network.

They stand in for the processes of ``local_nodes``, so that the same tests run on both.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import docker
import pytest
from docker.models.containers import Container
from local_nodes import LocalProcess, RedisProcess, WorkerProcess

ROOT = Path(__file__).parents[1]
REDIS_IMAGE = "redis:7-bookworm"
_ANSWERS_WITHIN_S = 20


def engine_or_skip() -> docker.DockerClient:
    """Return the Docker engine; skip the test where none answers, or where there is no client to build with."""
    if shutil.which("docker") is None:
        pytest.skip("no Docker client: docker is not on the PATH")
    if not _succeeds(["docker", "info"]):
        pytest.skip("no Docker engine answers")
    return docker.from_env(timeout=60)


def compose_or_skip() -> list[str]:
    """Return the command of Compose, the plug-in or the older program; skip the test where neither works."""
    for command in (["docker", "compose"], ["docker-compose"]):
        # A client without the plug-in fails, each version in words of its own.
        if shutil.which(command[0]) and _succeeds([*command, "version"]):
            return command
    pytest.skip("no Compose: neither `docker compose` nor `docker-compose` works")


def _succeeds(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=_ANSWERS_WITHIN_S, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def build_image(tag: str) -> None:
    """Build the image of the checkout."""
    built = subprocess.run(
        ["docker", "build", "-q", "-f", "workers/Dockerfile", "-t", tag, "."],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert built.returncode == 0, built.stderr[-3000:]


class ContainerProcess(LocalProcess):
    """A container in the place of a child process."""

    engine: docker.DockerClient
    image = REDIS_IMAGE
    files: Mapping[Path, str] = {}
    """Files of the host that the container reads, and where."""

    _container: Container | None = None

    @property
    def container(self) -> Container:
        """The container; the same one over all its starts, so that its files outlive them."""
        if self._container is None:
            self._container = self.engine.containers.create(
                self.image,
                self.command(),
                name=f"callmilltest-{self.id[:12]}",
                environment=self.environment(),
                network_mode="host",
                volumes={str(path): {"bind": where, "mode": "ro"} for path, where in self.files.items()},
            )
        return self._container

    @property
    def status(self) -> str:
        """``running`` or ``exited``."""
        self.container.reload()
        return str(self.container.status)

    def start(self) -> Self:
        """Start the container; ``ready`` waits until it serves."""
        self._log_start = len(self.logs())
        self.container.start()
        return self

    def logs(self) -> str:
        """Return everything that was logged."""
        return self.container.logs().decode(errors="replace")

    def send(self, number: signal.Signals) -> None:
        """Send a signal and return at once."""
        self.container.kill(signal=number.name)

    def wait(self, timeout_s: float = 60.0) -> int:
        """Wait for the end and return the exit code."""
        return int(self.container.wait(timeout=timeout_s)["StatusCode"])

    def teardown(self) -> None:
        """End the container, if need be by force, and remove it with its files."""
        self.container.remove(force=True, v=True)


class RedisContainer(ContainerProcess, RedisProcess):
    """A Redis server in a container."""

    def command(self) -> list[str]:
        """Return the server's options: the image's entry point puts the server in front of them."""
        return [part for part in RedisProcess.command(self)[1:] if part not in {"--dir", str(self.folder)}]


class WorkerContainer(ContainerProcess, WorkerProcess):
    """A worker in a container of our image."""

    ready_prompt = ": ready, serves"

    def __init__(self, folder: Path, redis_url: str, apis: Path, settings: Mapping[str, object], *, image: str) -> None:
        super().__init__(folder, redis_url, apis, settings)
        self.image = image
        shown = self.folder / "apis.toml"
        shutil.copyfile(apis, shown)
        self.files = {shown: "/etc/callmill/apis.toml"}

    def command(self) -> list[str]:
        """Return the command of the image."""
        return ["worker", "--name", f"worker-{self.id[:12]}"]

    def environment(self) -> dict[str, str]:
        """Return the worker's settings; the profiles are where the image expects them."""
        return {name: value for name, value in super().environment().items() if name != "CALLMILL_APIS"}
