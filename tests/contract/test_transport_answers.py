"""Whose answer is it? Every transport against a server that breaks HTTP/1.1 in every way we know."""

from __future__ import annotations

import asyncio
import ssl

import pytest
import trustme
from faulty_server import FaultyServer, faulty_server
from misbehaving_server import KINDS, Kind, is_proven, misbehave, misbehave_at_head
from transport_cases import NAMES, options
from wrong_answers import measure

from callmill.workers.transports.factory import make_transport
from callmill.workers.transports.port import FaultKind, Response, Transport, TransportFault

_CALL_S = 10
_CONNECT_S = 1.0
_QUIET_S = 0.05
"""How long after an answer the next request comes where the server does something by itself in between."""


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    """Name a transport."""
    return request.param


async def send(transport: Transport, server: FaultyServer, kind: str, nonce: str) -> Response | TransportFault:
    """Make one call; a fault comes back as it is."""
    how = KINDS[kind]
    try:
        return await transport.send(how.method, server.url(f"/{kind}/{nonce}"), {}, how.body, _CALL_S)
    except TransportFault as fault:
        return fault


def check(came: Response | TransportFault, kind: Kind, nonce: str) -> None:
    """Check that what came is what is right for the kind."""
    if isinstance(came, TransportFault):
        assert (came.kind in kind.faults, came.sent) == (True, True), came
    else:
        assert is_proven(came, nonce), came
        assert kind.own_answer


async def after_each_other(name: str, server: FaultyServer, kind: str, ca_file: str | None = None) -> None:
    """Make two calls of the kind over the same pool, with two ordinary ones behind each."""
    # hyper-util's client returns a connection to its pool in a separate task (on_idle). A call that comes before that
    # opens another one; with room for two, the pool closes neither.
    late = name == "pyreqwest"
    transport = make_transport(name, options(max_connections=1 + late, ca_file=ca_file, connect_timeout_s=_CONNECT_S))
    doubt, reused = KINDS[kind].in_doubt, []
    try:
        for round_ in range(2):
            check(await send(transport, server, kind, f"odd{round_}"), KINDS[kind], f"odd{round_}")
            odd = server.requests[-1].connection
            if KINDS[kind].timed:
                await asyncio.sleep(_QUIET_S)
            for step in range(2):
                nonce = f"good{round_}{step}"
                check(await send(transport, server, "good", nonce), KINDS["good"], nonce)
            reused.append(server.requests[-1].connection == odd)
            assert doubt in (None, not reused[-1]) or (late and not doubt and odd not in server.ended)
        assert any(reused) or doubt is not False
    finally:
        await transport.aclose()


@pytest.mark.parametrize("kind", KINDS)
def test_no_other_answer(name: str, kind: str) -> None:
    """A call gets its own answer or a fault of the answer, those after it theirs; doubt ends the connection."""
    with faulty_server(misbehave, early=misbehave_at_head) as server:
        asyncio.run(after_each_other(name, server, kind))


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, str]:
    """Make a server's TLS context, and the file of its authority."""
    authority = trustme.CA()
    path = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context, str(path)


@pytest.mark.parametrize(
    "kind",
    [
        "good-post",
        "103-late",
        "two-at-once",
        "much-after",
        "after-chunks",
        "late-stray",
        "early-deaf",
        "early-asleep",
        "204-body",
    ],
)
def test_no_other_answer_over_tls(name: str, kind: str, tls: tuple[ssl.SSLContext, str]) -> None:
    """The same over TLS, whose layer holds bytes back that no look at the socket shows."""
    with faulty_server(misbehave, tls[0], early=misbehave_at_head) as server:
        asyncio.run(after_each_other(name, server, kind, tls[1]))


def test_endless_interim_answers(name: str) -> None:
    """Interim answers without end are over with the call's time."""

    async def hint(exchange: object) -> None:
        while True:
            await exchange.raw(b"HTTP/1.1 103 Early Hints\r\n\r\n")  # type: ignore[attr-defined]
            await asyncio.sleep(0.01)

    async def main(server: FaultyServer) -> TransportFault:
        transport = make_transport(name, options())
        try:
            with pytest.raises(TransportFault) as raised:
                await transport.send("GET", server.url(), {}, None, 0.4)
            return raised.value
        finally:
            await transport.aclose()

    with faulty_server(hint) as server:
        raised = asyncio.run(main(server))
    assert (raised.kind, raised.sent) == (FaultKind.TIMEOUT, True)


def test_many_exchanges(name: str) -> None:
    """Of 600 exchanges over pooled connections, two of five of them misbehaved, none gets another one's answer."""
    tally = measure(name, 600, seed=11)
    assert not tally.wrong
    assert not tally.unsent
    assert tally.exchanges == 600
    assert tally.right > 400


def test_own_connection_for_each_call(name: str) -> None:
    """Without reuse each call has its own connection, and not even an answer to nobody that comes late is taken."""
    tally = measure(name, 400, seed=11, timed=True, reuse=False)
    assert not tally.wrong
    assert (tally.exchanges, tally.connections) == (400, 400)
