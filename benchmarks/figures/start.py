"""How long a worker process takes from its start to its first call, as the API sees it."""

from __future__ import annotations

import socket
import time
from contextlib import closing

from child import Child
from figure import Figure
from redis_server import flush
from scale import Scale
from stage import Stage
from workload import jobs

_MOST_S = 5.0
_TIMEOUT_S = 60.0
_PROFILE = """\
[apis.first]
base_url = "http://127.0.0.1:{port}"
allow_private_addresses = true
"""
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


def measure(scale: Scale) -> list[Figure]:
    """Start workers, one after the other, while a call waits for them."""
    with closing(socket.create_server(("127.0.0.1", 0))) as api:
        api.settimeout(_TIMEOUT_S)
        with Stage(more_profiles=_PROFILE.format(port=api.getsockname()[1])) as stage:
            runs = tuple(_start(stage, api) for _ in range(scale.starts))
    return [
        Figure(
            name="start of a worker process to its first call",
            unit="s",
            runs=runs,
            must=_MOST_S,
            note=f"median of {len(runs)}, {min(runs):.2f} to {max(runs):.2f} s",
        )
    ]


def _start(stage: Stage, api: socket.socket) -> float:
    flush(stage.redis_url)
    stage.client.submit(jobs(1, "/", api="first"))
    began_s = time.perf_counter()
    with stage.start_worker("callmill") as worker:
        return _first_call(api, worker) - began_s


def _first_call(api: socket.socket, worker: Child) -> float:
    """Return when the first request is there; a connection that was opened ahead brings none yet."""
    try:
        while True:
            connection, _ = api.accept()
            with connection:
                if connection.recv(65536):
                    at_s = time.perf_counter()
                    connection.sendall(_ANSWER)
                    return at_s
    except TimeoutError as error:
        raise RuntimeError(f"no call within {_TIMEOUT_S:g} s:\n{worker.log_tail()}") from error
