"""The sessions of the requests transport: the user's own, and what is asked of them."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import urllib3
from faulty_server import FaultyServer, faulty_server
from misbehaving_server import is_proven, misbehave
from requests.adapters import BaseAdapter, HTTPAdapter
from transport_cases import answer_by_path, options

from callmill.errors import ConfigurationError
from callmill.workers.transports.factory import make_transport
from callmill.workers.transports.port import FaultKind, Response, TransportFault
from callmill.workers.transports.user_agent import USER_AGENT

ME = "test_requests_sessions"
NOT_CALLABLE = 3


class Signed(requests.auth.AuthBase):
    """Adds a parameter, as signing plug-ins do."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Sign."""
        request.prepare_url(request.url, {"signature": "s1"})
        return request


class Strange(BaseAdapter):
    """An adapter without connections that could be checked."""


class Wrapped(BaseAdapter):
    """An adapter that hands requests to connections which are not ours."""

    def __init__(self) -> None:
        super().__init__()
        self._inner = HTTPAdapter()

    def send(self, *args: Any, **kwargs: Any) -> requests.Response:
        """Send."""
        return self._inner.send(*args, **kwargs)

    def close(self) -> None:
        """Close."""
        self._inner.close()


class OwnPool(HTTPAdapter):
    """An adapter with a pool of its own."""

    def get_connection_with_tls_context(self, request: Any, *_: Any, **__: Any) -> Any:
        """Choose a pool."""
        return urllib3.PoolManager(1).connection_from_url(request.url)


class Factories:
    """Factories by name, as a profile would name them."""

    proxy = ""

    @staticmethod
    def signed() -> requests.Session:
        """Make a session with headers, auth and an adapter."""
        session = requests.Session()
        session.trust_env = False
        session.auth = Signed()
        session.headers["X-Team"] = "blue"
        session.mount("http://", HTTPAdapter(pool_maxsize=3))
        return session

    @staticmethod
    def plain() -> requests.Session:
        """Make a session as requests makes it."""
        return requests.Session()

    @staticmethod
    def proxied() -> requests.Session:
        """Make a session with a proxy."""
        session = requests.Session()
        session.trust_env = False
        session.proxies = {"http": Factories.proxy, "https": Factories.proxy}
        return session

    @staticmethod
    def strange() -> requests.Session:
        """Make a session with an adapter that cannot be checked."""
        session = requests.Session()
        session.mount("http://", Strange())
        return session

    @staticmethod
    def wrapped() -> requests.Session:
        """Make a session whose adapter wraps another one."""
        session = requests.Session()
        session.mount("http://", Wrapped())
        return session

    @staticmethod
    def own_pool() -> requests.Session:
        """Make a session whose adapter has a pool of its own."""
        session = requests.Session()
        session.mount("http://", OwnPool())
        return session

    @staticmethod
    def no_session() -> str:
        """Return something else."""
        return "session"

    @staticmethod
    def failing() -> requests.Session:
        """Fail."""
        raise RuntimeError("no key")


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    """Serve for one test."""
    with faulty_server(answer_by_path) as running:
        yield running


def get(url: str, timeout_s: float = 5, **changes: Any) -> None:
    """Make one call."""

    async def main() -> None:
        transport = make_transport("requests", options(**changes))
        try:
            await transport.send("GET", url, {"X-Mine": "1"}, None, timeout_s)
        finally:
            await transport.aclose()

    asyncio.run(main())


def test_session_of_the_user(server: FaultyServer) -> None:
    """The user's session adds its headers and its auth; the default User-Agent of requests becomes ours."""
    get(server.url("/a%2fb?c=d"), session_factory=f"{ME}:Factories.signed")
    arrived = server.requests[0]
    assert arrived.target.endswith("?c=d&signature=s1")
    assert (arrived.headers["x-team"], arrived.headers["x-mine"]) == ("blue", "1")
    assert arrived.headers["user-agent"] == USER_AGENT


def test_session_of_the_user_obeys_the_address_rule(server: FaultyServer) -> None:
    """The address rule holds for the adapters of the user's session too."""
    with pytest.raises(TransportFault) as raised:
        get(server.url(host="localhost"), session_factory=f"{ME}:Factories.signed", allow_private_addresses=False)
    assert raised.value.kind is FaultKind.FORBIDDEN_ADDRESS
    assert server.connections == 0


@pytest.mark.parametrize(
    ("factory", "complaint"),
    [
        ("no colon", "module:callable"),
        (":x", "module:callable"),
        ("x:", "module:callable"),
        ("no_such_module_anywhere:x", "importing no_such_module_anywhere failed"),
        (f"{ME}:nothing", "has no callable 'nothing'"),
        (f"{ME}:NOT_CALLABLE", "has no callable"),
        (f"{ME}:Factories.no_session", "returned str, not a requests.Session"),
        (f"{ME}:Factories.failing", "raised RuntimeError"),
        (f"{ME}:Factories.strange", "allow_private_addresses = true"),
    ],
)
def test_bad_factories(factory: str, complaint: str) -> None:
    """A factory that cannot be used is a configuration error when the transport is made, and says why."""
    with pytest.raises(ConfigurationError, match=complaint):
        make_transport("requests", options(session_factory=factory, allow_private_addresses=False))


def test_factory_is_only_for_requests() -> None:
    """A session factory beside another transport is a configuration error, not silently ignored."""
    with pytest.raises(ConfigurationError, match="session_factory"):
        make_transport("pyreqwest", options(session_factory=f"{ME}:Factories.signed"))


def test_threads_end(server: FaultyServer) -> None:
    """After aclose no thread of the transport is left, and there never were more than 64."""

    async def main() -> int:
        transport = make_transport("requests", options(max_connections=1000))
        await asyncio.gather(*(transport.send("GET", server.url("/soon"), {}, None, 10) for _ in range(200)))
        most = len(ours())
        await transport.aclose()
        return most

    def ours() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name.startswith("callmill-requests")]

    assert 0 < asyncio.run(main()) <= 64
    assert not ours()


class Foreign(HTTPAdapter):
    """An adapter with connections of urllib3's own, which cannot be told to read strictly."""

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Send over urllib3's own pools."""
        self.poolmanager.pool_classes_by_scheme = urllib3.poolmanager.pool_classes_by_scheme
        return super().send(request, *args, **kwargs)


def foreign() -> requests.Session:
    """Make a session with such an adapter."""
    session = requests.Session()
    session.trust_env = False
    session.mount("http://", Foreign())
    return session


@pytest.mark.parametrize("factory", ["Factories.signed", "Factories.plain"])
@pytest.mark.parametrize("kind", ["103-late", "many-1xx", "two-at-once", "204-body"])
def test_session_of_the_user_mixes_no_answers_up(factory: str, kind: str) -> None:
    """Sessions of a user's factory, whatever their adapters, read answers as strictly as ours."""
    with faulty_server(misbehave) as server:
        for nonce, answer in exchanges(server, kind, session_factory=f"{ME}:{factory}"):
            assert isinstance(answer, Response)
            assert is_proven(answer, nonce)


@pytest.mark.parametrize("kind", ["103-late", "two-at-once", "204-body"])
def test_adapter_of_the_user_loses_its_connection(kind: str) -> None:
    """Where a user's adapter makes connections of its own kind, none is used twice, and no answer is another one's."""
    with faulty_server(misbehave) as server:
        for nonce, answer in exchanges(server, kind, session_factory=f"{ME}:foreign"):
            if isinstance(answer, Response):
                assert is_proven(answer, nonce)
            else:
                assert (answer.kind, answer.sent) == (FaultKind.PROTOCOL, True)
        assert server.connections == len(server.requests)


def test_proxy_of_the_user_mixes_no_answers_up() -> None:
    """Answers that come through the proxy of a user's session are read as strictly."""
    with faulty_server(misbehave) as proxy:
        Factories.proxy = proxy.url().rstrip("/")
        for nonce, answer in exchanges(proxy, "103-late", "http://api.test", session_factory=f"{ME}:Factories.proxied"):
            assert isinstance(answer, Response)
            assert is_proven(answer, nonce)
        assert proxy.requests[0].target.startswith("http://api.test/")


def test_redirect_is_left_alone(server: FaultyServer) -> None:
    """The body of a redirect counts against the cap, and is neither read beyond it nor lost."""

    async def main() -> None:
        transport = make_transport("requests", options())
        try:
            answer = await transport.send("GET", server.url("/long-redirect"), {}, None, 5)
            assert (answer.status, answer.body) == (302, b"moved")
            with pytest.raises(TransportFault) as raised:
                await transport.send("GET", server.url("/endless-redirect"), {}, None, 5)
            assert raised.value.kind is FaultKind.TOO_LARGE
        finally:
            await transport.aclose()

    asyncio.run(main())


def exchanges(
    server: FaultyServer, kind: str, base: str = "", **changes: Any
) -> list[tuple[str, Response | TransportFault]]:
    """Make calls in turns, of the kind and in good order, on one connection as far as that is kept."""

    async def main() -> list[tuple[str, Response | TransportFault]]:
        transport = make_transport("requests", options(max_connections=1, **changes))
        came: list[tuple[str, Response | TransportFault]] = []
        try:
            for number in range(8):
                nonce = f"n{number}"
                path = f"/{'good' if number % 2 else kind}/{nonce}"
                try:
                    came.append(
                        (nonce, await transport.send("GET", base + path if base else server.url(path), {}, None, 5))
                    )
                except TransportFault as fault:
                    came.append((nonce, fault))
        finally:
            await transport.aclose()
        return came

    return asyncio.run(main())


@pytest.mark.parametrize("factory", [None, "plain", "wrapped", "own_pool"])
def test_request_that_may_have_arrived_counts_as_sent(server: FaultyServer, factory: str | None) -> None:
    """What a server got and never answered counts as sent, whoever made the connection: it may have been executed."""
    with pytest.raises(TransportFault) as raised:
        get(server.url("/hang"), 0.5, session_factory=factory and f"{ME}:Factories.{factory}")
    assert (raised.value.kind, raised.value.sent) == (FaultKind.TIMEOUT, True)
    assert len(server.requests) == 1


@pytest.mark.parametrize("factory", [None, "plain"])
def test_request_that_met_nobody_does_not_count_as_sent(factory: str | None) -> None:
    """Where nobody listens, nothing was sent, also not by a session of the user's with ordinary adapters."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        with pytest.raises(TransportFault) as raised:
            get(url, session_factory=factory and f"{ME}:Factories.{factory}")
    assert (raised.value.kind, raised.value.sent) == (FaultKind.CONNECT, False)


def test_proxy_that_makes_no_tunnel_was_sent_nothing_of_the_request(server: FaultyServer) -> None:
    """What a proxy got before there was a tunnel is none of the request: the API cannot have executed it."""
    Factories.proxy = server.url("").rstrip("/")
    with pytest.raises(TransportFault) as raised:
        get("https://api.test/x", 0.5, session_factory=f"{ME}:Factories.proxied")
    assert not raised.value.sent
    assert [request.target for request in server.requests] == ["api.test:443"]


def test_debugging_of_http_client(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls go on where somebody lets http.client print what it does."""
    monkeypatch.setattr(http.client.HTTPConnection, "debuglevel", 1)
    get(server.url())
    assert len(server.requests) == 1
