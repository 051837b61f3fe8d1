"""A Redis of a benchmark's own: on a free port, in memory only."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Self

from child import Child, answers, free_port

from callmill.config.redis_connections import connect_blocking
from callmill.config.server_binary import find_server_binary


class RedisServer:
    """A server that runs while the context lasts; ``child`` is its process.

    Raises:
        ServerNotFoundError: No server program on this machine.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._port = free_port()
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self.child = self._start()

    def restart_empty(self) -> None:
        """End it with kill -9 and start it again, without anything that it knew; returns when it serves."""
        self.child.kill()
        self.child = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.child.stop()

    def _start(self) -> Child:
        place = ["--port", str(self._port), "--bind", "127.0.0.1", "--dir", str(self._directory)]
        command: list[str | Path] = [server_program(), *place, "--save", "", "--appendonly", "no"]
        child = Child(command, self._directory / f"redis-{self._port}.log")
        try:
            child.await_ready(lambda: answers(self._port))
        except BaseException:
            child.stop()
            raise
        return child


@contextmanager
def redis_server(directory: Path) -> Iterator[str]:
    """Run a server while the context lasts; yields its URL.

    Raises:
        ServerNotFoundError: No server program on this machine.
    """
    with RedisServer(directory) as server:
        yield server.url


def server_program() -> Path:
    """Return redis-server if it is installed, else the one that comes with Callmill."""
    installed = shutil.which("redis-server")
    return Path(installed) if installed else find_server_binary()


def used_memory(url: str) -> int:
    """Return the bytes that the server has in use."""
    with closing(connect_blocking(url)) as client:
        return int(client.info("memory")["used_memory"])


def flush(url: str) -> None:
    """Empty the server."""
    with closing(connect_blocking(url)) as client:
        client.flushall()
