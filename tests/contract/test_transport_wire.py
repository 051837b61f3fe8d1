"""What goes over the wire: every transport sends the same request, as the job says it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from faulty_server import Exchange, FaultyServer, faulty_server
from transport_cases import NAMES, options

from callmill.workers.transports.factory import make_transport
from callmill.workers.transports.port import FaultKind, Response, Transport, TransportFault

EXACT = ("SOAPAction",)
ANSWERS = {
    "/folded": (
        b"HTTP/1.1 200 OK\r\nX-Long: one\r\n  two\r\nContent-Length: 2\r\n\r\nok",
        (200, {"x-long": "one two"}, b"ok"),
    ),
    "/repeated": (
        b"HTTP/1.1 299\r\nSet-Cookie: a=1\r\nLink: </2>\r\nset-cookie: b=2\r\nLink: </9>\r\nContent-Length: 0\r\n\r\n",
        (299, {"set-cookie": "a=1, b=2", "link": "</2>, </9>"}, b""),
    ),
    "/trailers": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nTrailer: X-T\r\n\r\n2;a=b\r\nok\r\n0\r\nX-T: 1\r\n\r\n",
        (200, {"trailer": "X-T"}, b"ok"),
    ),
    "/1.0": (b"HTTP/1.0 200 OK\r\n\r\nto the end", (200, {}, b"to the end")),
    "/endless": (b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nto the end", (200, {}, b"to the end")),
    "/205": (b"HTTP/1.1 205 Reset\r\nContent-Length: 2\r\n\r\nok", (205, {}, b"ok")),
    "/304": (b'HTTP/1.1 304 Same\r\nETag: "1"\r\nContent-Length: 20\r\n\r\n', (304, {"etag": '"1"'}, b"")),
    "/empty": (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 0\r\n\r\n",
        (200, {"content-type": "application/json"}, b""),
    ),
    "/no-reason": (b"HTTP/1.1 299\r\nContent-Length: 2\r\n\r\nok", (299, {}, b"ok")),
    "/foreign-reason": (b"HTTP/1.1 999 Refus\xe9\r\nContent-Length: 2\r\n\r\nok", (999, {}, b"ok")),
    "/early-hints": (
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        (200, {}, b"ok"),
    ),
    "/twice-one-length": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        (200, {"content-length": "2, 2"}, b"ok"),
    ),
}
TARGETS = {
    "/a%20b%2Fc%2fd": "/a%20b%2Fc%2fd",
    "/a+b?c+d=e+f&g=%2B": "/a+b?c+d=e+f&g=%2B",
    "/é/日本?x=ü&y=😀": "/%C3%A9/%E6%97%A5%E6%9C%AC?x=%C3%BC&y=%F0%9F%98%80",
    "/a b?c d": "/a%20b?c%20d",
    "/?": "/?",
    "/a?b#fragment": "/a?b",
    "/a#fragment?b": "/a",
    "//a//b/": "//a//b/",
    "/a;b=c:d@e,f!$&()*+,=~": "/a;b=c:d@e,f!$&()*+,=~",
    "/a'b": "/a'b",
    "/a?b=[1]&c={x}|^`&d=/?:@\\": "/a?b=[1]&c={x}|^`&d=/?:@\\",
    "/%zz%?%zz%": "/%zz%?%zz%",
    "/a?x=1&x=2&x": "/a?x=1&x=2&x",
    "/a.b/..c/...": "/a.b/..c/...",
}


async def answer(exchange: Exchange) -> None:
    """Answer with the bytes of the path; only the end of the connection ends a body that has no length."""
    if exchange.target == "/foreign-values":
        values = (b"X-Old", "Größe".encode("latin-1"), b"X-New", "日本".encode())
        await exchange.raw(b"HTTP/1.1 200 OK\r\n%b: %b\r\n%b: %b\r\nX-Plain: a\r\nContent-Length: 0\r\n\r\n" % values)
        return
    if exchange.target not in ANSWERS:
        await exchange.answer()
        return
    await exchange.raw(ANSWERS[exchange.target][0])
    if exchange.target in ("/1.0", "/endless"):
        exchange.writer.close()


class Wire:
    """A server, and each transport to it."""

    def __init__(self, server: FaultyServer, runner: asyncio.Runner) -> None:
        self.server = server
        self._runner = runner
        self._transports: dict[str, Transport] = {}

    def ask(self, name: str, path: str = "/", method: str = "GET", **request: Any) -> Response:
        """Make one call."""
        url = path if "://" in path else self.server.url(path)
        return self._runner.run(self._ask(name, method, url, **request))

    def sent(self, name: str, *path: str, **request: Any) -> Exchange:
        """Make one call, and return it as it arrived."""
        self.ask(name, *path, **request)
        return self.server.requests[-1]

    async def _ask(
        self, name: str, method: str, url: str, headers: dict[str, str] | None = None, body: bytes | None = None
    ) -> Response:
        if name not in self._transports:
            self._transports[name] = make_transport(name, options(exact_headers=EXACT))
        return await self._transports[name].send(method, url, headers or {}, body, 5)

    async def aclose(self) -> None:
        """Close the transports."""
        for transport in self._transports.values():
            await transport.aclose()


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    """Serve for the whole module."""
    with faulty_server(answer) as server, asyncio.Runner() as runner:
        wire = Wire(server, runner)
        yield wire
        runner.run(wire.aclose())


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "MKCOL", "QUERY"])
@pytest.mark.parametrize("body", [None, b""])
@pytest.mark.parametrize("name", NAMES)
def test_a_call_without_a_body_says_so(wire, name, method, body):
    """Where servers expect a body, its length is 0: some answer 411 otherwise."""
    assert wire.sent(name, method=method, body=body).headers["content-length"] == "0"


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS", "TRACE"])
@pytest.mark.parametrize("name", NAMES)
def test_a_call_that_has_no_body_has_no_length(wire, name, method):
    """Where servers expect no body, there is none, and no length either."""
    assert not {"content-length", "transfer-encoding"} & set(wire.sent(name, method=method).headers)


@pytest.mark.parametrize("method", ["PROPFIND", "QUERY", "M-SEARCH", "mkcol", "get", "!#$%&'*+-.^_`|~09az"])
@pytest.mark.parametrize("name", NAMES)
def test_a_method_goes_out_as_written(wire, name, method):
    """A method is any token, and its case counts."""
    arrived = wire.sent(name, method=method, body=b"body")
    assert (arrived.method, arrived.body) == (method, b"body")


@pytest.mark.parametrize("target", TARGETS)
def test_every_transport_asks_for_the_same_target(wire, target):
    """Path and query go out as written; what no URL can hold is percent-encoded as UTF-8, a fragment stays here."""
    assert [wire.sent(name, target).target for name in NAMES] == [TARGETS[target]] * len(NAMES)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-Name": "value", "User-Agent": "mine/1", "accept": "text/csv"},
        {"Content-Type": "text/plain; charset=latin1", "X-Empty": ""},
        {"X-Odd": 'a, b; c="d\\"e"\tf'},
        {"X-Name": "Zoë 日本"},
    ],
)
def test_every_transport_sends_the_same_headers(wire, headers):
    """Headers are the caller's and a few of ours, the same over every transport; what is not ASCII goes as UTF-8."""
    seen = [wire.sent(name, method="POST", headers=headers, body=b"x").headers for name in NAMES]
    seen = [{name: value for name, value in one.items() if name != "connection"} for one in seen]
    assert seen[0] == seen[1]
    assert {name: seen[0][name.lower()].encode("latin-1").decode() for name in headers} == headers


@pytest.mark.parametrize("host", ["localhost", "LocalHost", "127.0.0.1"])
def test_every_transport_names_the_same_host(wire, host):
    """The Host header is the URL's."""
    hosts = [wire.sent(name, wire.server.url(host=host)).headers["host"] for name in NAMES]
    assert hosts[0] == hosts[1] == f"{host.lower()}:{wire.server.port}"


@pytest.mark.parametrize("name", NAMES)
def test_a_header_name_keeps_its_case_where_that_is_asked_for(wire, name):
    """SOAPAction goes out as written, with everything else of the call, before and after calls that have none."""
    for _ in range(2):
        arrived = wire.sent(name, method="POST", headers={"SOAPAction": '"urn:x"', "X-Other": "1"}, body=b"<x/>")
        assert "SOAPAction" in arrived.names
        assert (arrived.headers["soapaction"], arrived.headers["x-other"], arrived.body) == ('"urn:x"', "1", b"<x/>")
        assert "SOAPAction" not in wire.sent(name).names


def test_requests_keeps_the_case_of_all_names(wire):
    """The transport that is chosen for it writes every name as the caller did."""
    headers = {"X-MBX-APIKEY": "1", "dpop": "2", "eTag": "3"}
    assert set(headers) <= set(wire.sent("requests", headers=headers).names)


def test_requests_reads_foreign_header_values(wire):
    """Values outside ASCII are UTF-8, or else Latin-1; the default transport cannot read them, and leaves them out."""
    headers = wire.ask("requests", "/foreign-values").headers
    assert (headers["x-old"], headers["x-new"], headers["x-plain"]) == ("Größe", "日本", "a")
    assert set(wire.ask("pyreqwest", "/foreign-values").headers) == {"x-plain", "content-length"}


@pytest.mark.parametrize("path", ANSWERS)
@pytest.mark.parametrize("name", NAMES)
def test_odd_answers_are_understood(wire, name, path):
    """Answers that HTTP allows but few servers send arrive whole: status, headers and body."""
    status, headers, body = ANSWERS[path][1]
    got = wire.ask(name, path)
    assert (got.status, got.body) == (status, body)
    assert {header: got.headers[header] for header in headers} == headers


@contextlib.contextmanager
def tls_server(authority: trustme.CA) -> Iterator[FaultyServer]:
    """Serve over TLS with a certificate of an authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with faulty_server(answer, context) as running:
        yield running


@pytest.mark.parametrize("name", NAMES)
def test_ca_file_replaces_the_system_s_authorities(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ca_file, what only the system trusts is refused; without, the system is asked, then and afterwards."""
    system, own = trustme.CA(), trustme.CA()
    system.cert_pem.write_to_path(tmp_path / "system.pem")
    own.cert_pem.write_to_path(tmp_path / "own.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "system.pem"))
    (tmp_path / "system").mkdir()
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "system"))
    monkeypatch.setattr("requests.adapters.DEFAULT_CA_BUNDLE_PATH", str(tmp_path / "system.pem"))

    async def ask(server: FaultyServer, **changes: Any) -> int | FaultKind:
        transport = make_transport(name, options(**changes))
        try:
            return (await transport.send("GET", server.url(), {}, None, 5)).status
        except TransportFault as fault:
            return fault.kind
        finally:
            await transport.aclose()

    async def main() -> list[int | FaultKind]:
        with tls_server(system) as trusted, tls_server(own) as private:
            ca_file = str(tmp_path / "own.pem")
            return [
                await ask(trusted, ca_file=ca_file),
                await ask(private, ca_file=ca_file),
                await ask(trusted),
                await ask(private),
            ]

    assert asyncio.run(main()) == [FaultKind.TLS, 200, 200, FaultKind.TLS]
