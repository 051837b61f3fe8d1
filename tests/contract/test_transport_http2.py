"""Whose answer is it over HTTP/2? The default transport against a server that breaks it; requests does not speak it."""

from __future__ import annotations

import asyncio
import ssl

import pytest
import trustme
from http2_server import BEHAVIOURS, Http2Server, http2_server
from misbehaving_server import is_proven
from transport_cases import options

from callmill.workers.transports.factory import make_transport
from callmill.workers.transports.port import FaultKind, Response, Transport, TransportFault

ANSWERED = {"good", "interim", "trailers", "swapped", "interleaved", "two-answers"}
UNTOUCHED = {"goaway-after", "goaway-before", "refused"}
"""Here the server says that it did not look at a request, which may then be sent again, or fail."""

Came = Response | TransportFault


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, str]:
    """Make the TLS context of a server that offers HTTP/2, and the file of its authority."""
    authority = trustme.CA()
    path = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    context.set_alpn_protocols(["h2"])
    return context, str(path)


async def send(transport: Transport, server: Http2Server, kind: str, nonce: str) -> Came:
    """Make one call; a fault comes back as it is."""
    try:
        return await transport.send("POST", server.url, {}, f"{kind}/{nonce}".encode(), 10)
    except TransportFault as fault:
        return fault


def check(came: Came, nonce: str, *, answered: bool, may_fail: bool) -> None:
    """Check that what came is the request's own answer, or a fault of the answer."""
    if isinstance(came, TransportFault):
        assert may_fail, came
        assert came.sent
        assert came.kind in (FaultKind.RESET, FaultKind.PROTOCOL)
    else:
        assert answered, came
        assert is_proven(came, nonce)


@pytest.mark.parametrize("kind", BEHAVIOURS)
def test_no_other_answer(kind: str, tls: tuple[ssl.SSLContext, str]) -> None:
    """Of calls at once on one connection each gets its own answer or a fault of the answer; a later call is well."""

    async def main() -> None:
        transport = make_transport("pyreqwest", options(ca_file=tls[1]))
        async with http2_server(tls[0]) as server:
            try:
                await send(transport, server, "good", "first")
                odd_0, odd_1, beside = await asyncio.gather(
                    send(transport, server, kind, "odd0"),
                    send(transport, server, kind, "odd1"),
                    send(transport, server, "good", "beside"),
                )
                after = await send(transport, server, "good", "after")
            finally:
                await transport.aclose()
        answered, may_fail = kind in ANSWERED | UNTOUCHED, kind not in ANSWERED
        check(odd_0, "odd0", answered=answered, may_fail=may_fail)
        check(odd_1, "odd1", answered=answered, may_fail=may_fail)
        check(beside, "beside", answered=True, may_fail=may_fail)
        check(after, "after", answered=True, may_fail=False)

    asyncio.run(main())
