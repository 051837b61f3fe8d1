"""A Redis of a benchmark's own: on a free port, in memory only."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from child import Child, answers, free_port

from callmill.config.redis_connections import connect_blocking
from callmill.config.server_binary import find_server_binary


@contextmanager
def redis_server(directory: Path) -> Iterator[str]:
    """Run a server while the context lasts; yields its URL.

    Raises:
        ServerNotFoundError: No server program on this machine.
    """
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(directory)]
    with Child([server_program(), *options], directory / f"redis-{port}.log") as server:
        server.await_ready(lambda: answers(port))
        yield f"redis://127.0.0.1:{port}/0"


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
