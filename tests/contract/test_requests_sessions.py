"""The sessions of the requests transport: the user's own, and what is asked of them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from faulty_server import FaultyServer, faulty_server
from requests.adapters import BaseAdapter, HTTPAdapter
from transport_cases import answer_by_path, options

from callmill.errors import ConfigurationError
from callmill.workers.transports.factory import make_transport
from callmill.workers.transports.port import FaultKind, TransportFault
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


class Factories:
    """Factories by name, as a profile would name them."""

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
    def strange() -> requests.Session:
        """Make a session with an adapter that cannot be checked."""
        session = requests.Session()
        session.mount("http://", Strange())
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


def get(url: str, **changes: Any) -> None:
    """Make one call."""

    async def main() -> None:
        transport = make_transport("requests", options(**changes))
        try:
            await transport.send("GET", url, {"X-Mine": "1"}, None, 5)
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
