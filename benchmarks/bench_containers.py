"""Measure the image: its size over its base, and how soon a new container's worker makes its first call.

``python benchmarks/bench_containers.py``: needs a Docker engine. Builds the image of the checkout.
"""

from __future__ import annotations

import http.server
import os
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from statistics import median

from redis_server import redis_server

from callmill.producer import Client, Job

ROOT = Path(__file__).parents[1]
IMAGE, STARTS, WAIT_S = "callmillbench", 10, 60


class Api(http.server.BaseHTTPRequestHandler):
    """Answers 200, and notes when the call arrived."""

    arrivals: Queue[float] = Queue()

    def do_GET(self) -> None:
        """Answer."""
        self.arrivals.put(time.monotonic())
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def api() -> Iterator[str]:
    """Serve the API; its URL."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def docker(*arguments: str) -> str:
    """Run the docker command; return what it says."""
    return subprocess.run(["docker", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def size_over_base_mb() -> tuple[float, float]:
    """Return the image's size, and what it adds to its base, in MB."""
    lines = (ROOT / "workers/Dockerfile").read_text().splitlines()
    base = next(line.removeprefix("ARG BASE=") for line in lines if line.startswith("ARG BASE="))
    whole, below = (int(docker("image", "inspect", "-f", "{{.Size}}", name)) / 1e6 for name in (IMAGE, base))
    return whole, whole - below


def bare_start_s() -> float:
    """Return how long a container of the image takes that does nothing."""
    began_s = time.monotonic()
    docker("run", "--rm", "--entrypoint", "python", IMAGE, "-c", "pass")
    return time.monotonic() - began_s


def first_call_s(redis_url: str, profiles: Path) -> float:
    """Return how long it takes from `docker run` to the first call at the API."""
    name = f"{IMAGE}-{uuid.uuid4().hex[:8]}"
    options = ["--network=host", "-e", f"CALLMILL_REDIS_URL={redis_url}", "-e", "CALLMILL_ALLOW_UNSAFE_REDIS=1"]
    with Client(redis_url) as client:
        batch = client.submit([Job("GET", "/", api="bench")])
        began_s = time.monotonic()
        docker("run", "-d", "--name", name, *options, "-v", f"{profiles}:/etc/callmill/apis.toml:ro", IMAGE)
        try:
            took_s = Api.arrivals.get(timeout=WAIT_S) - began_s
            batch.wait(WAIT_S)
        finally:
            docker("rm", "-f", name)
    return took_s


def main() -> None:
    """Measure and print."""
    docker("build", "-q", "-f", "workers/Dockerfile", "-t", IMAGE, ".")
    whole, added = size_over_base_mb()
    print(f"image                         {whole:,.0f} MB, {added:,.0f} MB over its base")
    with api() as url, tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as redis_url:
        profiles = Path(folder) / "apis.toml"
        profiles.write_text(f'[apis.bench]\nbase_url = "{url}"\nallow_private_addresses = true\n')
        os.environ["CALLMILL_APIS"] = str(profiles)
        bare = [bare_start_s() for _ in range(STARTS)]
        started = [first_call_s(redis_url, profiles) for _ in range(STARTS)]
    print(f"a container that does nothing median {median(bare):.2f} s, most {max(bare):.2f} s, {STARTS} runs")
    print(f"start to first call           median {median(started):.2f} s, most {max(started):.2f} s, {STARTS} runs")


if __name__ == "__main__":
    main()
