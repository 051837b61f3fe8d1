"""The simulator as a process, over real sockets."""

from __future__ import annotations

import asyncio
import errno
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from callmill.config.limit_spec import parse_limit
from callmill.errors import ConfigurationError, OutsideError
from callmill.simulator import SimulatorOptions, SimulatorProcess, serve
from callmill.simulator.latency import parse_latency

TIMEOUT_S = 10


@pytest.fixture
def simulator():
    """Start simulators that end with the test."""
    running: list[SimulatorProcess] = []

    def start(**options: Any) -> SimulatorProcess:
        limits = tuple(parse_limit(text) for text in options.pop("limits", ()))
        process = SimulatorProcess(SimulatorOptions(limits=limits, **options)).start()
        running.append(process)
        return process

    yield start
    for process in running:
        process.stop()


def connect(url: str) -> socket.socket:
    """Open a connection to the simulator."""
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port), timeout=TIMEOUT_S)


def read_all(connection: socket.socket) -> bytes:
    """Read until the other side closes."""
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    return received


def raw(url: str, data: bytes) -> bytes:
    """Send bytes and return everything that comes back until the connection closes."""
    with connect(url) as connection:
        connection.sendall(data)
        return read_all(connection)


def request(url: str, method: str = "GET", path: str = "/", **kwargs: Any) -> tuple[int, bytes]:
    """Make one exchange on a connection of its own."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, **kwargs)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def until(condition: Callable[[], bool]) -> None:
    """Ask again until the condition holds, and fail when it does not in time."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline


def test_a_connection_serves_many_calls(simulator):
    """Calls on one kept connection are answered in order, each with its own data."""
    address = urlsplit(simulator().url)
    connection = http.client.HTTPConnection(address.netloc, timeout=TIMEOUT_S)
    for number in range(20):
        connection.request("POST", f"/row/{number}", body=json.dumps({"row": number}))
        answer = json.loads(connection.getresponse().read())
        assert (answer["path"], answer["body"]) == (f"/row/{number}", {"row": number})
    connection.close()


def test_pipelined_calls_are_answered_in_their_order(simulator):
    """Requests sent without waiting are answered in their order even when latencies differ."""
    url = simulator(latency=parse_latency("0ms-5ms"), seed=1).url
    sent = b"".join(b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(30))
    received = raw(url, sent + b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    paths = [f'"path":"/{name}"'.encode() for name in [*range(30), "last"]]
    positions = [received.index(path) for path in paths]
    assert positions == sorted(positions)
    assert received.count(b"HTTP/1.1 200 OK") == 31


def test_a_body_in_pieces_is_put_together(simulator):
    """A chunked body, sent byte by byte after 100-continue, arrives whole."""
    with connect(simulator().url) as connection:
        head = b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n"
        connection.sendall(head + b"Connection: close\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue")
        for byte in b'3\r\n{"a\r\n4\r\n":1}\r\n0\r\n\r\n':
            connection.sendall(bytes([byte]))
        assert b'"body":{"a":1}' in read_all(connection)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n", b"400"),
        (b"GET / HTTP/1.0\r\n\r\n", b"200"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\nPRI", b"200"),
    ],
)
def test_odd_requests_are_answered(simulator, sent, status):
    """What is not HTTP gets 400 and a close; old HTTP and upgrades get a plain answer; nothing kills the server."""
    url = simulator().url
    with connect(url) as connection:
        connection.sendall(sent)
        assert connection.recv(65536).split()[1] == status
    assert request(url)[0] == 200


def test_a_body_beyond_the_cap_is_refused(simulator):
    """A body above 16 MiB is answered with 413, so that a client cannot fill the memory."""
    url = simulator().url
    with connect(url) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\n")
        try:
            for _ in range(20):
                connection.sendall(b"x" * 1_000_000)
            answer = connection.recv(100)
        except OSError as error:
            # Closing with unread data resets the connection; the answer may be lost with it.
            assert error.errno in (errno.EPIPE, errno.ECONNRESET)  # noqa: PT017 - either ending is right
        else:
            assert answer.startswith(b"HTTP/1.1 413")
    assert request(url)[0] == 200


def test_a_reset_is_a_tcp_reset(simulator):
    """A reset fault ends the connection with RST, not with an orderly close."""
    process = simulator(reset_rate=1.0)
    with connect(process.url) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
    assert process.stats()["errors"] == {"reset": 1}


def test_a_hang_is_silent_until_its_bound(simulator):
    """A hang sends nothing and closes the connection after its bound."""
    process = simulator(hang_rate=1.0, hang_s=0.2)
    assert raw(process.url, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") == b""
    assert process.stats()["errors"] == {"hang": 1}


def test_a_client_that_leaves_is_counted_as_abandoned(simulator):
    """A call whose client closes before the answer is no longer in flight, frees its place, and is no success."""
    process = simulator(hang_rate=1.0, limits=["1 concurrent"])
    with connect(process.url) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nIdempotency-Key: k\r\n\r\n")
        until(lambda: process.stats()["in_flight"] == 1)
        assert request(process.url)[0] == 429
    until(lambda: process.stats()["in_flight"] == 0)
    stats = process.stats()
    assert (stats["abandoned"], stats["accepted"], stats["max_in_flight"]) == (1, 1, 1)


def test_malformed_answers_break_in_each_way(simulator):
    """Over some calls come: bytes that are not HTTP, a 200 with broken JSON, a body shorter than its length."""
    process = simulator(malformed_rate=1.0, seed=1)
    seen = set()
    for _ in range(30):
        received = raw(process.url, b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        head, _, body = received.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            seen.add("not_http")
            continue
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        seen.add("truncated" if len(body) < length else "broken_json")
        with pytest.raises(ValueError, match=r"."):
            json.loads(body)
    assert seen == set(process.stats()["errors"]) == {"not_http", "broken_json", "truncated"}


def test_many_clients_at_once_never_get_more_than_the_limit(simulator):
    """300 calls at once to 100/minute: exactly 100 answers 200, exactly 200 answers 429."""
    process = simulator(limits=["100/minute"])

    async def call(number: int) -> bytes:
        address = urlsplit(process.url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(b"GET /%d HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % number)
        answer = await reader.read()
        writer.close()
        return answer.split()[1]

    async def all_calls() -> list[bytes]:
        return await asyncio.gather(*map(call, range(300)))

    statuses = asyncio.run(all_calls())
    assert (statuses.count(b"200"), statuses.count(b"429")) == (100, 200)
    stats = process.stats()
    assert (stats["accepted"], stats["rejected"]) == (100, 200)
    assert stats["limits"][0]["largest_in_any_window"] == 100


def test_the_log_is_whole_after_stats_and_after_the_end(simulator, tmp_path):
    """The log holds every call when /stats has answered, and again when the process has ended."""
    log = tmp_path / "calls.jsonl"
    process = simulator(log=log, limits=["2/minute"])
    for key in "abc":
        request(process.url, "POST", "/p", headers={"Idempotency-Key": key})
    process.stats()
    assert [json.loads(line)["status"] for line in log.read_text().splitlines()] == [200, 200, 429]
    request(process.url, "GET", "/late")
    assert process.stop() == 0
    assert json.loads(log.read_text().splitlines()[-1])["path"] == "/late"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(number):
    """SIGTERM and SIGINT end the simulator with exit code 0, connections open or not, and nothing on stderr."""
    child = subprocess.Popen(
        [sys.executable, "-m", "callmill.simulator", "--port=0", "--hang-rate=1", "--limit=5/second"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with child, connect(child.stdout.readline().decode().split()[-1]) as connection:
        assert b"5/second" in child.stdout.readline()
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        child.send_signal(number)
        assert child.wait(TIMEOUT_S) == 0
        assert child.stderr.read() == b""


def test_reset_starts_anew(simulator):
    """After reset() the limit is whole and the counts are zero."""
    process = simulator(limits=["1/day"])
    assert [request(process.url)[0] for _ in range(2)] == [200, 429]
    process.reset()
    assert process.stats()["accepted"] == 0
    assert request(process.url)[0] == 200


def test_a_log_that_cannot_be_written_ends_it():
    """A full disk under the log ends the simulator with a message and exit code 1: an incomplete log proves nothing."""
    command = [sys.executable, "-m", "callmill.simulator", "--port=0", "--log=/dev/full"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        request(child.stdout.readline().decode().split()[-1])
        assert child.wait(TIMEOUT_S) == 1
        assert b"Error: --log /dev/full: No space left" in child.stderr.read()


def test_a_taken_port_is_a_clear_error(simulator):
    """A second simulator on the same port ends before it is ready, with a message that names the port."""
    port = urlsplit(simulator().url).port
    with pytest.raises(OutsideError, match="exit code 2"), SimulatorProcess(SimulatorOptions(port=port)):
        pass
    with pytest.raises(ConfigurationError, match=f"--port {port}"):
        asyncio.run(serve(SimulatorOptions(port=port), print))


def test_serve_runs_inside_a_loop_until_cancelled(tmp_path: Path):
    """serve() tells its URL, answers, and on cancellation closes the port and the log."""
    log = tmp_path / "calls.jsonl"

    async def scenario() -> str:
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        serving = asyncio.ensure_future(serve(SimulatorOptions(log=log), ready.set_result))
        url = await ready
        assert (await asyncio.to_thread(request, url))[0] == 200
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        return url

    url = asyncio.run(scenario())
    assert len(log.read_text().splitlines()) == 1
    with pytest.raises(ConnectionRefusedError):
        connect(url)
