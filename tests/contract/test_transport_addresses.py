"""The private-address rule holds for both transports, on the address that is connected to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from faulty_server import FaultyServer, faulty_server
from transport_cases import NAMES, answer_by_path, options

from callmill.workers.transports import pinned_clients
from callmill.workers.transports.addresses import is_forbidden, literal_address
from callmill.workers.transports.factory import make_transport
from callmill.workers.transports.port import FaultKind, Response, TransportFault

Addresses = dict[str, list[str]]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    """Name a transport."""
    return request.param


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    """Serve for one test."""
    with faulty_server(answer_by_path) as running:
        yield running


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Addresses:
    """Names that resolve as the test says; each look-up takes the first list that is left."""
    addresses: Addresses = {}
    real = socket.getaddrinfo

    def look_up(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        found = addresses.get(host)
        if found is None:
            return real(host, port, *args, **kwargs)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port or 0)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return addresses


def get(name: str, url: str) -> Response:
    """Make one call under the rule."""

    async def main() -> Response:
        transport = make_transport(name, options(allow_private_addresses=False))
        try:
            return await transport.send("GET", url, {}, None, 3)
        finally:
            await transport.aclose()

    return asyncio.run(main())


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.127.255.255",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd00:ec2::254",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::127.0.0.1",
        "::ffff:0:127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::1",
        "64:ff9b:1::7f00:1",
        "64:ff9b:1::808:808",
        "192.0.0.192",
        "192.0.0.9",
        "192.88.99.1",
        "168.63.129.16",
        "100.100.100.200",
        "2001:0:808:808:0:0:f5ff:fffe",
        "::ffff:168.63.129.16",
        "64:ff9b::a83f:8110",
        "3fff::1",
        "5f00::1",
        "100:0:0:1::1",
    ],
)
def test_forbidden(address: str) -> None:
    """Every address that does not belong to the public internet is forbidden, also inside IPv6."""
    assert is_forbidden(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "100.63.255.255", "172.32.0.1", "2606:4700::1111", "64:ff9b::808:808"])
def test_allowed(address: str) -> None:
    """Public addresses are allowed, also through NAT64."""
    assert not is_forbidden(address)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("0x7f000001", "127.0.0.1"),
        ("2130706433", "127.0.0.1"),
        ("0177.0.0.1", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("127.0.0.1.", "127.0.0.1"),
        ("[::1]", "::1"),
        ("example.com", None),
        ("face.cafe", None),
        ("deadbeef", None),
    ],
)
def test_literals(host: str, address: str | None) -> None:
    """Every way to write an address is recognised, and no name is taken for one."""
    assert literal_address(host) == address


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST.",
        "127.0.0.1",
        "127.1",
        "0x7f000001",
        "2130706433",
        "0177.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
        "169.254.169.254",
        "user:password@127.0.0.1",
        "１２７.0.0.1",  # noqa: RUF001 - full-width digits are the point
    ],
)
def test_nothing_reaches_a_private_host(name: str, server: FaultyServer, host: str) -> None:
    """However it is written, a private host is refused before a connection is made."""
    with pytest.raises(TransportFault) as raised:
        get(name, server.url(host=host))
    # Whether the resolver knows a name with a final dot, and requests one in full-width digits, is theirs to say.
    if host.isascii() and not host.endswith("."):
        assert raised.value.kind is FaultKind.FORBIDDEN_ADDRESS
    assert not raised.value.sent
    assert server.connections == 0


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["1.1.1.1", "127.0.0.1"]])
def test_private_answers_of_dns(name: str, server: FaultyServer, names: Addresses, addresses: list[str]) -> None:
    """A name with a private address among its addresses is refused."""
    names["api.example.com"] = addresses
    with pytest.raises(TransportFault) as raised:
        get(name, server.url(host="api.example.com"))
    assert raised.value.kind is FaultKind.FORBIDDEN_ADDRESS
    assert server.connections == 0


def test_rebinding_cannot_reach_a_private_host(
    name: str, server: FaultyServer, names: Addresses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was checked is what is connected to: the later address of a name is not even asked for."""
    names["api.example.com"] = ["127.0.0.1"]
    module = "addresses" if name == "pyreqwest" else "checked_connections"
    checked: list[list[str]] = []

    def looks_public(_host: str, addresses: Any) -> None:
        checked.append(list(addresses))
        names["api.example.com"] = ["127.0.0.9"]

    monkeypatch.setattr(f"callmill.workers.transports.{module}.refuse_forbidden", looks_public)
    assert get(name, server.url(host="api.example.com")).body == b"ok"
    assert {address for addresses in checked for address in addresses} == {"127.0.0.1"}
    assert server.requests[0].headers["host"] == f"api.example.com:{server.port}"


class TestPinning:
    """pyreqwest's clients are pinned; here the rule is opened so that pinned names can reach this machine."""

    @pytest.fixture(autouse=True)
    def _open_rule(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("callmill.workers.transports.addresses.refuse_forbidden", lambda _host, _addresses: None)

    def test_one_look_up_for_many_calls(self, server: FaultyServer, names: Addresses) -> None:
        """A name is resolved once, and its calls share a connection and keep their Host."""
        names["api.example.com"] = ["127.0.0.1"]
        url = server.url(host="api.example.com")

        async def main() -> None:
            transport = make_transport("pyreqwest", options(allow_private_addresses=False))
            await transport.send("GET", url, {}, None, 3)
            names["api.example.com"] = []
            for _ in range(10):
                await transport.send("GET", url + "more", {}, None, 3)
            await transport.aclose()

        asyncio.run(main())
        assert server.connections == 1
        assert {request.headers["host"] for request in server.requests} == {f"api.example.com:{server.port}"}

    def test_next_address_when_one_is_dead(self, server: FaultyServer, names: Addresses) -> None:
        """Where the first address refuses the connection, the next one gets the call, and the calls after it."""
        names["api.example.com"] = ["127.0.0.9", "127.0.0.1"]

        async def main() -> None:
            transport = make_transport("pyreqwest", options(allow_private_addresses=False))
            for _ in range(3):
                assert (await transport.send("GET", server.url(host="api.example.com"), {}, None, 3)).body == b"ok"
            await transport.aclose()

        asyncio.run(main())
        assert (len(server.requests), server.connections) == (3, 1)

    def test_a_moved_name_is_followed(
        self, server: FaultyServer, names: Addresses, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """When a name's address changes, calls go to the new one, and the old client ends with its last call."""
        monkeypatch.setattr(pinned_clients, "_FRESH_S", 0)
        names["api.example.com"] = ["127.0.0.1"]
        url = server.url(host="api.example.com")

        async def main() -> None:
            transport = make_transport("pyreqwest", options(allow_private_addresses=False))
            slow = asyncio.ensure_future(transport.send("GET", url + "second", {}, None, 5))
            await asyncio.to_thread(server.arrived.acquire)
            names["api.example.com"] = ["127.0.0.9"]
            with pytest.raises(TransportFault) as raised:
                await transport.send("GET", url, {}, None, 3)
            assert raised.value.kind is FaultKind.CONNECT
            assert (await slow).body == b"ok"
            await transport.aclose()

        asyncio.run(main())

    def test_origins_are_not_confused(self, server: FaultyServer, names: Addresses) -> None:
        """URLs without a path never share the route of another host."""
        names["a.example.com"] = ["127.0.0.1"]
        names["a.example.co"] = []

        async def main() -> None:
            transport = make_transport("pyreqwest", options(allow_private_addresses=False))
            base = server.url("", host="a.example.com")
            for ending in ("", "/", "?x=/", "#/"):
                await transport.send("GET", base + ending, {}, None, 3)
            with pytest.raises(TransportFault, match="no address"):
                await transport.send("GET", f"http://a.example.co:{server.port}", {}, None, 3)
            await transport.aclose()

        asyncio.run(main())
        assert len(server.requests) == 4
