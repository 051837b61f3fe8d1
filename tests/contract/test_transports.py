"""The contract of the transports: the same properties for every HTTP library behind the port."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from faulty_server import Exchange, FaultyServer, faulty_server
from transport_cases import LARGE_BYTES, NAMES, answer_by_path, options

from callmill.config import open_files
from callmill.errors import ConfigurationError
from callmill.workers.transports.answer_room import AnswerRoom, AnswersOfApi
from callmill.workers.transports.factory import make_transport
from callmill.workers.transports.port import FaultKind, Response, Transport, TransportFault
from callmill.workers.transports.user_agent import USER_AGENT

Body = Callable[[Transport], Coroutine[Any, Any, Any]]
BESIDES_CONNECTIONS = 128
"""Files of the test process, whatever else was tested in it before."""


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    """Name a transport."""
    return request.param


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyServer]:
    """Serve for the whole module."""
    with faulty_server(answer_by_path) as running:
        yield running


@pytest.fixture
def own_server() -> Iterator[FaultyServer]:
    """Serve for one test."""
    with faulty_server(answer_by_path) as running:
        yield running


@contextlib.asynccontextmanager
async def opened(name: str, **changes: Any) -> AsyncIterator[Transport]:
    """Open a transport for a block."""
    transport = make_transport(name, options(**changes))
    try:
        yield transport
    finally:
        await transport.aclose()


def run(name: str, body: Body, **changes: Any) -> Any:
    """Run ``body`` on a transport."""

    async def main() -> Any:
        async with opened(name, **changes) as transport:
            return await body(transport)

    return asyncio.run(main())


def get(name: str, url: str, timeout_s: float = 5, **changes: Any) -> Response:
    """Make one call."""
    return run(name, lambda transport: transport.send("GET", url, {}, None, timeout_s), **changes)


def fault(name: str, url: str, timeout_s: float = 5, **changes: Any) -> TransportFault:
    """Make one call that fails."""
    with pytest.raises(TransportFault) as raised:
        get(name, url, timeout_s, **changes)
    return raised.value


@contextlib.contextmanager
def unanswered_port() -> Iterator[int]:
    """A port that leaves SYNs unanswered, since its backlog is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(8):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    "body", ["h\u00e9llo".encode(), b"\xff\x00\xfe", b"x" * 100_000], ids=["text", "binary", "long"]
)
def test_body_arrives_as_it_is(name: str, own_server: FaultyServer, body: bytes) -> None:
    """The server gets the very bytes of a body, text or not, and no type of content that nobody named."""
    run(name, lambda transport: transport.send("POST", own_server.url(), {}, body, 5))
    assert [request.body for request in own_server.requests] == [body]
    assert "content-type" not in own_server.requests[0].headers


@pytest.mark.parametrize("path", ["hang", "drip", "drip-head"])
def test_time_out_with_connection(name: str, server: FaultyServer, path: str) -> None:
    """The overall time holds while the head is awaited and while a body or head drips, and is told as TIMEOUT, sent."""
    started = time.monotonic()
    raised = fault(name, server.url(f"/{path}"), 0.4)
    assert (raised.kind, raised.sent) == (FaultKind.TIMEOUT, True)
    assert 0.35 < time.monotonic() - started < 4


@pytest.mark.parametrize(("timeout_s", "connect_timeout_s"), [(0.4, 5), (5, 0.4)])
def test_time_out_while_connecting(name: str, timeout_s: float, connect_timeout_s: float) -> None:
    """Whichever of the two times is over first ends connecting, as TIMEOUT."""
    with unanswered_port() as port:
        started = time.monotonic()
        raised = fault(name, f"http://127.0.0.1:{port}/", timeout_s, connect_timeout_s=connect_timeout_s)
    assert raised.kind is FaultKind.TIMEOUT
    assert time.monotonic() - started < 4
    assert connect_timeout_s > timeout_s or not raised.sent


def test_time_out_waiting_for_a_connection(name: str, own_server: FaultyServer) -> None:
    """A call that gets no connection within its time ends as TIMEOUT with nothing sent."""

    async def body(transport: Transport) -> None:
        first = asyncio.ensure_future(transport.send("GET", own_server.url("/hang"), {}, None, 5))
        await asyncio.to_thread(own_server.arrived.acquire)
        with pytest.raises(TransportFault) as raised:
            await transport.send("GET", own_server.url(), {}, None, 0.2)
        assert (raised.value.kind, raised.value.sent) == (FaultKind.TIMEOUT, False)
        first.cancel()
        await asyncio.wait([first])

    run(name, body, max_connections=1)
    assert len(own_server.requests) == 1


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("reset", FaultKind.RESET),
        ("close", FaultKind.RESET),
        ("reset-in-body", FaultKind.RESET),
        ("truncated", FaultKind.RESET),
        ("truncated-chunks", FaultKind.RESET),
        ("bad-chunks", FaultKind.PROTOCOL),
        ("not-http", FaultKind.PROTOCOL),
        ("bad-gzip", FaultKind.PROTOCOL),
        ("endless", FaultKind.TOO_LARGE),
        ("claims-much", FaultKind.TOO_LARGE),
        ("gzip-bomb", FaultKind.TOO_LARGE),
        ("deflate-bomb", FaultKind.TOO_LARGE),
    ],
)
def test_faults_after_the_request(name: str, server: FaultyServer, path: str, kind: FaultKind) -> None:
    """Whatever goes wrong after the request has its kind, and counts as sent."""
    raised = fault(name, server.url(f"/{path}"))
    assert (raised.kind, raised.sent) == (kind, True)


def test_endless_body_takes_bounded_memory(name: str, server: FaultyServer) -> None:
    """Ten endless bodies at once take no more memory than their caps."""

    async def body(transport: Transport) -> None:
        calls = (transport.send("GET", server.url("/endless"), {}, None, 20) for _ in range(10))
        for ended in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(ended, TransportFault)
            assert ended.kind is FaultKind.TOO_LARGE

    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(name, body)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 80_000


@pytest.mark.parametrize("unrecorded_bytes", [2 << 20, 4 << 20])
def test_waiting_for_room_is_no_time_out(name: str, own_server: FaultyServer, unrecorded_bytes: int) -> None:
    """An answer that there is no room for in its call's time is read all the same; at worst it is NO_ROOM, sent."""
    room = AnswerRoom(2 << 20)

    async def body(transport: Transport) -> Response:
        room.unrecorded(unrecorded_bytes)
        asyncio.get_running_loop().call_later(1.2, room.unrecorded, 0)
        return await transport.send("GET", own_server.url("/large"), {}, None, 0.8)

    changes = {"answers": AnswersOfApi(room), "max_response_bytes": 2 * LARGE_BYTES}
    if name == "pyreqwest" and unrecorded_bytes > room.most_bytes:
        with pytest.raises(TransportFault) as raised:
            run(name, body, **changes)
        assert (raised.value.kind, raised.value.sent) == (FaultKind.NO_ROOM, True)
    else:
        assert len(run(name, body, **changes).body) == LARGE_BYTES
    assert (room.reading_bytes, len(own_server.requests)) == (0, 1)


def test_body_of_exactly_the_cap(name: str, own_server: FaultyServer) -> None:
    """The cap itself is allowed, one byte less is too little."""
    assert get(name, own_server.url(), max_response_bytes=2).body == b"ok"
    assert fault(name, own_server.url(), max_response_bytes=1).kind is FaultKind.TOO_LARGE


def test_refused(name: str) -> None:
    """Nobody listening is CONNECT, with nothing sent."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        raised = fault(name, f"http://127.0.0.1:{unused.getsockname()[1]}/")
    assert (raised.kind, raised.sent) == (FaultKind.CONNECT, False)


@pytest.mark.parametrize("allowed", [True, False])
def test_unknown_name(name: str, *, allowed: bool) -> None:
    """A name that does not resolve is DNS, with nothing sent."""
    raised = fault(name, "http://nobody.invalid/", allow_private_addresses=allowed)
    assert (raised.kind, raised.sent) == (FaultKind.DNS, False)


@pytest.mark.parametrize("url", ["nonsense", "ftp://127.0.0.1/", "http://", "http://[::1/", "/path"])
def test_unusable_url(name: str, url: str) -> None:
    """What cannot be sent at all is PROTOCOL, with nothing sent."""
    raised = fault(name, url)
    assert (raised.kind, raised.sent) == (FaultKind.PROTOCOL, False)


def test_unusable_header(name: str, server: FaultyServer) -> None:
    """A header that would smuggle another one is refused before anything is sent."""
    with pytest.raises(TransportFault) as raised:
        run(name, lambda transport: transport.send("GET", server.url(), {"X-A": "1\r\nX-B: 2"}, None, 5))
    assert (raised.value.kind, raised.value.sent) == (FaultKind.PROTOCOL, False)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Make an authority."""
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write its certificate to a file."""
    path: Path = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return str(path)


@contextlib.contextmanager
def tls_server(authority: trustme.CA, *names: str) -> Iterator[FaultyServer]:
    """Serve over TLS with a certificate for ``names``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    with faulty_server(answer_by_path, context) as running:
        yield running


def test_tls(name: str, authority: trustme.CA, ca_file: str) -> None:
    """A certificate of an authority in ca_file is trusted; without the file, or for another host, it is TLS, unsent."""
    with tls_server(authority, "127.0.0.1") as server:
        assert get(name, server.url(), ca_file=ca_file).body == b"ok"
        untrusted = fault(name, server.url())
        assert (untrusted.kind, untrusted.sent) == (FaultKind.TLS, False)
        wrong_host = fault(name, server.url(host="localhost"), ca_file=ca_file)
        assert (wrong_host.kind, wrong_host.sent) == (FaultKind.TLS, False)
        assert len(server.requests) == 1


def test_http2_over_tls(authority: trustme.CA, ca_file: str) -> None:
    """Where a server offers HTTP/2 in the TLS handshake, pyreqwest speaks it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    context.set_alpn_protocols(["h2", "http/1.1"])

    async def main() -> bytes:
        greeting: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            greeting.set_result(await reader.readexactly(24))
            writer.close()

        listener = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=context)
        url = f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
        async with listener, opened("pyreqwest", ca_file=ca_file) as transport:
            with pytest.raises(TransportFault):
                await transport.send("GET", url, {}, None, 2)
        return await greeting

    assert asyncio.run(main()) == b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def test_reset_while_connecting(name: str) -> None:
    """A connection that breaks in the TLS handshake is no sent request."""

    async def main() -> TransportFault:
        async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.transport.abort()

        listener = await asyncio.start_server(reset, "127.0.0.1", 0)
        url = f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
        async with listener, opened(name) as transport:
            with pytest.raises(TransportFault) as raised:
                await transport.send("GET", url, {}, None, 5)
        return raised.value

    raised = asyncio.run(main())
    assert (raised.kind, raised.sent) == (FaultKind.CONNECT, False)


@pytest.mark.parametrize("content", [b"", b"no authority"])
def test_bad_ca_file(name: str, tmp_path: Path, content: bytes) -> None:
    """A ca_file that is missing or holds no certificate is a configuration error when the transport is made."""
    path = tmp_path / "ca.pem"
    with pytest.raises(ConfigurationError, match="ca_file"):
        make_transport(name, options(ca_file=str(path)))
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="ca_file"):
        make_transport(name, options(ca_file=str(path)))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_answers(name: str, own_server: FaultyServer, status: int) -> None:
    """A redirect comes back as it is and is not followed."""
    response = get(name, own_server.url(f"/{status}"))
    assert (response.status, response.headers["location"]) == (status, "/elsewhere")
    assert len(own_server.requests) == 1


def test_cookies_are_not_kept(name: str, own_server: FaultyServer) -> None:
    """A cookie that an answer sets is not sent with the next call."""

    async def body(transport: Transport) -> None:
        await transport.send("GET", own_server.url("/cookie"), {}, None, 5)
        await transport.send("GET", own_server.url("/"), {}, None, 5)

    run(name, body, max_connections=1)
    assert "cookie" not in own_server.requests[1].headers


def test_connections_are_reused(name: str, own_server: FaultyServer) -> None:
    """Calls one after the other use one connection."""

    async def body(transport: Transport) -> None:
        for _ in range(20):
            await transport.send("POST", own_server.url(), {}, b"x", 5)

    run(name, body, max_connections=1)
    assert (len(own_server.requests), own_server.connections) == (20, 1)


def test_reconnects_after_idle_close(name: str, own_server: FaultyServer) -> None:
    """A connection that the server closed while it was idle costs no call."""

    async def body(transport: Transport) -> None:
        for _ in range(5):
            await transport.send("POST", own_server.url("/until-close"), {}, b"x", 5)
            await transport.send("POST", own_server.url("/"), {}, b"x", 5)
            own_server.drop_connections()
            assert await asyncio.to_thread(own_server.wait_until_open, 0)
            await asyncio.sleep(0.02)  # The close has yet to travel; nothing tells when the library has seen it.

    run(name, body, max_connections=1)
    assert len(own_server.requests) == 10


def test_cancellation(name: str, own_server: FaultyServer) -> None:
    """A cancelled call ends at once, its connection ends by the call's own time, and the next calls work."""

    async def body(transport: Transport) -> None:
        calls = [asyncio.ensure_future(transport.send("GET", own_server.url("/hang"), {}, None, 2)) for _ in range(8)]
        for _ in calls:
            await asyncio.to_thread(own_server.arrived.acquire)
        started = time.monotonic()
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        assert time.monotonic() - started < 1.5
        assert all(call.cancelled() for call in calls)
        given_up = {request.connection for request in own_server.requests}
        answers = (transport.send("GET", own_server.url("/"), {}, None, 5) for _ in range(16))
        assert {answer.status for answer in await asyncio.gather(*answers)} == {200}
        assert await asyncio.to_thread(own_server.wait_until_ended, given_up, 3)

    run(name, body, max_connections=16)


def test_cancellation_is_never_lost(name: str, server: FaultyServer) -> None:
    """Tasks that call in an endless loop all end when cancelled, also where the answer arrives at that very moment."""

    async def for_ever(transport: Transport) -> None:
        while True:
            await transport.send("GET", server.url(), {}, None, 5)

    async def body(transport: Transport) -> None:
        for _ in range(10):
            tasks = [asyncio.ensure_future(for_ever(transport)) for _ in range(16)]
            await asyncio.sleep(0.05)
            for task in tasks:
                task.cancel()
            _, pending = await asyncio.wait(tasks, timeout=3)
            assert not pending

    run(name, body)


def test_very_many_at_once(name: str) -> None:
    """2000 calls (requests: 64) are in flight at one moment: the server answers none before it has them all.

    Each takes two files here, one at either end: where fewer may be open, as many as these are enough for.
    """
    files = open_files.raise_soft_limit()
    count = min(2000 if name == "pyreqwest" else 64, 2000 if files is None else (files - BESIDES_CONNECTIONS) // 2)
    waiting: list[Exchange] = []
    complete = asyncio.Event()

    async def answer_when_complete(exchange: Exchange) -> None:
        waiting.append(exchange)
        if len(waiting) == count:
            complete.set()
        await complete.wait()
        await exchange.answer()

    with faulty_server(answer_when_complete) as server:

        async def body(transport: Transport) -> None:
            calls = (transport.send("GET", server.url(), {}, None, 60) for _ in range(count))
            assert {answer.body for answer in await asyncio.gather(*calls)} == {b"ok"}

        run(name, body, max_connections=count, connect_timeout_s=60)


def test_max_connections(name: str, own_server: FaultyServer) -> None:
    """No more connections are ever open than max_connections."""

    async def body(transport: Transport) -> None:
        await asyncio.gather(*(transport.send("GET", own_server.url("/soon"), {}, None, 5) for _ in range(60)))

    run(name, body, max_connections=7)
    assert (len(own_server.requests), own_server.connections) == (60, 7)


def test_answer_headers(name: str, server: FaultyServer) -> None:
    """Names are in lower case, repeated ones joined; a value outside ASCII hurts no other."""
    headers = get(name, server.url("/repeated")).headers
    for _ in range(2):
        assert (headers["x-one"], headers.get("x-two"), headers.get("x-none", "-")) == ("a, b", "c", "-")
        assert "X-Two" not in headers
        assert "x-none" not in headers
        assert isinstance(headers.get("x-odd", ""), str)
        assert headers.keys() & {"x-one", "X-Two", "x-none"} == {"x-one"}
        assert "content-length" in list(headers)
    assert set(headers) - {"x-odd"} == {"x-one", "x-two", "content-length"}


def test_request_arrives_as_given(name: str, own_server: FaultyServer) -> None:
    """Method, headers and body arrive exactly; the library adds only what HTTP needs, and our User-Agent."""
    given = {"Content-Type": "text/x-odd; a=b", "Authorization": "Bearer t", "X-Mixed-Case": "Value  x"}
    sent = bytes(range(256)) * 40
    run(name, lambda transport: transport.send("PUT", own_server.url("/a?b=c"), given, sent, 5))
    arrived = own_server.requests[0]
    assert (arrived.method, arrived.target, arrived.body) == ("PUT", "/a?b=c", sent)
    assert {key: arrived.headers[key.lower()] for key in given} == given
    assert arrived.headers["user-agent"] == USER_AGENT
    known = {"host", "accept", "accept-encoding", "user-agent", "content-length", "connection"}
    assert set(arrived.headers) <= known | {key.lower() for key in given}


def test_own_headers_win(name: str, own_server: FaultyServer) -> None:
    """A User-Agent or Accept of the caller replaces ours, in whatever case it is written."""
    given = {"user-AGENT": "mine/1", "ACCEPT": "text/csv"}
    run(name, lambda transport: transport.send("GET", own_server.url(), given, None, 5))
    assert own_server.requests[0].headers["user-agent"] == "mine/1"
    assert own_server.requests[0].headers["accept"] == "text/csv"


def test_decompression(name: str, server: FaultyServer) -> None:
    """A compressed answer arrives decompressed, also when the caller asked for the encoding."""
    assert get(name, server.url("/gzip")).body == b"plain"
    given = {"Accept-Encoding": "gzip"}
    response = run(name, lambda transport: transport.send("GET", server.url("/gzip"), given, None, 5))
    assert response.body == b"plain"


@pytest.mark.parametrize(("method", "path", "status"), [("HEAD", "/", 200), ("GET", "/204", 204), ("GET", "/304", 304)])
def test_answers_without_body(name: str, server: FaultyServer, method: str, path: str, status: int) -> None:
    """HEAD, 204 and 304 have no body, and the connection stays usable."""

    async def body(transport: Transport) -> None:
        for _ in range(2):
            response = await transport.send(method, server.url(path), {}, None, 5)
            assert (response.status, response.body) == (status, b"")

    run(name, body)


def test_head_may_claim_any_length(name: str, server: FaultyServer) -> None:
    """The length that a HEAD answer claims is not reserved."""
    response = run(name, lambda transport: transport.send("HEAD", server.url("/claims-much"), {}, None, 5))
    assert (response.status, response.body) == (200, b"")


def test_body_until_close(name: str, server: FaultyServer) -> None:
    """An answer without length ends with its connection."""
    assert get(name, server.url("/until-close")).body == b"to the end"


@pytest.mark.parametrize("method", ["GET", "DELETE", "OPTIONS", "PATCH", "REPORT"])
def test_any_method_with_body(name: str, own_server: FaultyServer, method: str) -> None:
    """A body goes with every method."""
    run(name, lambda transport: transport.send(method, own_server.url(), {}, b"{}", 5))
    assert (own_server.requests[0].method, own_server.requests[0].body) == (method, b"{}")


@pytest.mark.parametrize(
    "target",
    [
        "/a%2fb%2Fc/%7Euser/%C3%A9?x=%2f&y=%27a%27+b%20c",
        "//double//slashes/?a=1&a=2&empty=&flag",
        "/;p=1/@:!$&()*+,=~_-.?sig=AbC%3D%3d/?",
        "/?",
    ],
)
def test_targets_are_untouched(name: str, own_server: FaultyServer, target: str) -> None:
    """A URL that is already encoded is sent byte for byte, so that signatures hold."""
    get(name, own_server.url(target))
    assert own_server.requests[0].target == target


def test_unicode_is_encoded_once(name: str, own_server: FaultyServer) -> None:
    """What is not ASCII is percent-encoded as UTF-8; a fragment is not sent."""
    get(name, own_server.url("/é x?ü=☃#part"))
    assert own_server.requests[0].target == "/%C3%A9%20x?%C3%BC=%E2%98%83"


def test_proxies_of_the_environment_are_ignored(
    name: str, own_server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HTTP_PROXY and its like divert no call."""
    for variable in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:1")
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    assert get(name, own_server.url()).body == b"ok"


def test_closing(name: str, own_server: FaultyServer) -> None:
    """Closing ends the calls in flight, may be called again, drops every connection; later calls are faults, unsent."""

    async def main() -> None:
        transport = make_transport(name, options())
        call = asyncio.ensure_future(transport.send("GET", own_server.url("/hang"), {}, None, 2))
        await asyncio.to_thread(own_server.arrived.acquire)
        await asyncio.gather(transport.aclose(), transport.aclose())
        await transport.aclose()
        with pytest.raises(TransportFault):
            await call
        with pytest.raises(TransportFault) as raised:
            await transport.send("GET", own_server.url(), {}, None, 5)
        assert not raised.value.sent
        assert await asyncio.to_thread(own_server.wait_until_open, 0)

    asyncio.run(main())


def test_unknown_transport() -> None:
    """A transport that does not exist is a configuration error that names those that do."""
    with pytest.raises(ConfigurationError, match="'pyreqwest', 'requests'"):
        make_transport("carrier-pigeon", options())
