"""Encoded bodies: every transport decodes the same, completely, or keeps what came and names its coding."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from faulty_server import Exchange, FaultyServer, faulty_server
from transport_cases import BOMB, NAMES, options

from callmill.workers.transports.factory import make_transport
from callmill.workers.transports.port import FaultKind, Response, Transport, TransportFault

TEXT = b"The quick brown fox jumps over the lazy dog. " * 40
NOISE = random.Random(1).randbytes(300_000)
ZLIB, GZIP = zlib.compress(TEXT), gzip.compress(TEXT)
BROTLI = b"\x0b\x02\x80hello\x03"
ZSTD = b"\x28\xb5\x2f\xfd\x04\x58\x29\x00\x00hello\xb6\x3d\x14\x21"


def raw_deflate(data: bytes) -> bytes:
    """Return deflate without zlib's format around it, as many servers send it."""
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


RAW = raw_deflate(TEXT)
DECODED: dict[str, tuple[str, bytes, bytes]] = {
    "gzip": ("gzip", GZIP, TEXT),
    "x-gzip": ("x-gzip", GZIP, TEXT),
    "capitals": (" GZip ", GZIP, TEXT),
    "two-members": ("gzip", gzip.compress(b"first, ") + gzip.compress(b"second"), b"first, second"),
    "empty-members": ("gzip", gzip.compress(b"") * 3 + GZIP + gzip.compress(b""), TEXT),
    "padded": ("gzip", GZIP + b"\0" * 500, TEXT),
    "named-file": ("gzip", b"\x1f\x8b\x08\x18" + GZIP[4:10] + b"a.txt\0a comment\0" + GZIP[10:], TEXT),
    "deflate": ("deflate", ZLIB, TEXT),
    "raw-deflate": ("deflate", RAW, TEXT),
    "raw-deflate-stored": ("deflate", b"\x01\x02\x00\xfd\xffhi", b"hi"),
    "twice": ("gzip, gzip", gzip.compress(GZIP), TEXT),
    "mixed": ("deflate,gzip", gzip.compress(ZLIB), TEXT),
    "raw-in-gzip": ("deflate,x-gzip", gzip.compress(RAW), TEXT),
    "identity": ("identity", TEXT, TEXT),
    "identity-too": ("identity, gzip,", GZIP, TEXT),
    "nothing-named": ("", TEXT, TEXT),
    "empty-gzip": ("gzip", gzip.compress(b""), b""),
    "nothing": ("gzip", b"", b""),
    "nothing-in-br": ("br", b"", b""),
    "noise": ("gzip", gzip.compress(NOISE), NOISE),
    "noise-raw": ("deflate", raw_deflate(NOISE), NOISE),
    "large-in-small": ("gzip", gzip.compress(b"a" * 900_000), b"a" * 900_000),
}
KEPT: dict[str, tuple[str, bytes]] = {
    "br": ("br", BROTLI),
    "zstd": ("zstd", ZSTD),
    "compress": ("compress", b"\x1f\x9d\x90h"),
    "unknown": ("aes128gcm", NOISE),
    "unknown-inside": ("br, gzip", gzip.compress(BROTLI)),
    "unknown-outside": ("gzip, br", BROTLI),
    "five-times": ("gzip, gzip, gzip, gzip, gzip", GZIP),
    "followed": ("gzip", GZIP + b"\r\n"),
    "followed-by-half": ("gzip", GZIP + b"\x1f"),
    "deflate-followed": ("deflate", ZLIB + b"x"),
    "raw-followed": ("deflate", RAW + b"x"),
    "20000-members": ("gzip", gzip.compress(b"") * 20_000),
}
BROKEN: dict[str, tuple[str, bytes]] = {
    "plain": ("gzip", TEXT),
    "plain-deflate": ("deflate", TEXT),
    "cut": ("gzip", GZIP[:-1]),
    "cut-early": ("gzip", GZIP[:5]),
    "second-cut": ("gzip", GZIP + GZIP[:30]),
    "wrong-sum": ("gzip", GZIP[:-8] + b"\0" * 8),
    "wrong-zlib-sum": ("deflate", ZLIB[:-4] + b"\0" * 4),
    "cut-deflate": ("deflate", ZLIB[:-1]),
    "cut-raw": ("deflate", RAW[:-1]),
    "once-only": ("gzip, gzip", GZIP),
    "dictionary": ("deflate", b"\x78\xbb\x00\x00\x00\x00" + RAW),
}
BOMBS: dict[str, tuple[str, bytes]] = {
    "gzip-bomb": ("gzip", gzip.compress(BOMB)),
    "deflate-bomb": ("deflate", zlib.compress(BOMB)),
    "raw-bomb": ("deflate", raw_deflate(BOMB)),
    "nested-bomb": ("gzip, gzip", gzip.compress(gzip.compress(BOMB))),
    "members-bomb": ("gzip", gzip.compress(b"a" * 600_000) * 2),
}
SENT: dict[str, tuple[str, bytes]] = {
    **{name: (codings, body) for name, (codings, body, _) in DECODED.items()},
    **KEPT,
    **BROKEN,
    **BOMBS,
}


@dataclass(frozen=True)
class Api:
    """The server, through one transport."""

    server: FaultyServer
    runner: asyncio.Runner
    transport: Transport

    def ask(self, path: str, method: str = "GET") -> Response:
        """Make one call."""
        return self.runner.run(self.transport.send(method, self.server.url(f"/{path}"), {}, None, 10))


@contextlib.contextmanager
def through(name: str, server: FaultyServer, **changes: Any) -> Iterator[Api]:
    """Call the server through a transport."""

    async def opened() -> Transport:
        return make_transport(name, options(**changes))

    with asyncio.Runner() as runner:
        transport = runner.run(opened())
        try:
            yield Api(server, runner, transport)
        finally:
            runner.run(transport.aclose())


async def answer(exchange: Exchange) -> None:
    """Answer with the body that the path names."""
    how, _, name = exchange.target[1:].rpartition("/")
    codings, body = SENT[name]
    if how == "transfer":
        head = f"HTTP/1.1 200 OK\r\nTransfer-Encoding: {codings}, chunked\r\n\r\n{len(body):x}\r\n"
        await exchange.raw(head.encode() + body + b"\r\n0\r\nX-Trailer: 1\r\n\r\n")
    elif how in ("204", "304"):
        await exchange.raw(f"HTTP/1.1 {how} Empty\r\nContent-Encoding: {codings}\r\n\r\n".encode())
    elif how == "repeated":
        lines = "".join(f"Content-Encoding: {coding}\r\n" for coding in codings.split(","))
        await exchange.answer(headers=lines, body=body)
    else:
        await exchange.answer(f"{how or 200} Well", f"Content-Encoding: {codings}\r\nX-Other: 1\r\n", body)


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyServer]:
    """Serve for the whole module."""
    with faulty_server(answer) as running:
        yield running


@pytest.fixture(params=NAMES, scope="module")
def api(request: pytest.FixtureRequest, server: FaultyServer) -> Iterator[Api]:
    """Return the server, through each transport."""
    with through(request.param, server) as opened:
        yield opened


@pytest.mark.parametrize("case", DECODED)
def test_what_was_asked_for_is_decoded(api: Api, case: str) -> None:
    """All forms of gzip and deflate are decoded to the last byte, and the headers are those of what is left."""
    got = api.ask(case)
    assert (got.body, got.encoding, got.headers["x-other"]) == (DECODED[case][2], "", "1")
    if SENT[case][1]:
        assert not {"content-encoding", "content-length"} & set(got.headers)


@pytest.mark.parametrize("case", KEPT)
def test_what_cannot_be_decoded_is_kept_and_named(api: Api, case: str) -> None:
    """A coding that we do not know, or a body of which decoding would lose a part, stays as it came, byte for byte."""
    codings, body = KEPT[case]
    got = api.ask(case)
    assert (got.status, got.body, got.encoding) == (200, body, codings)
    assert got.headers["content-encoding"] == codings


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_stream_is_a_fault(api: Api, case: str) -> None:
    """What is not what its coding says, or ends before its end, is no answer."""
    with pytest.raises(TransportFault, match=r"cannot be decoded as (gzip|deflate)") as raised:
        api.ask(case)
    assert (raised.value.kind, raised.value.sent) == (FaultKind.PROTOCOL, True)


@pytest.mark.parametrize("case", BOMBS)
def test_a_bomb_stops_at_the_cap(api: Api, case: str) -> None:
    """A body that is larger than the cap when decoded ends there, however small it was."""
    with pytest.raises(TransportFault) as raised:
        api.ask(case)
    assert (raised.value.kind, raised.value.sent) == (FaultKind.TOO_LARGE, True)


@pytest.mark.parametrize("name", NAMES)
def test_the_cap_is_exact(name: str, server: FaultyServer) -> None:
    """A decoded body may be as large as the cap, and no byte larger."""
    with through(name, server, max_response_bytes=len(TEXT)) as api:
        assert api.ask("gzip").body == TEXT
    with through(name, server, max_response_bytes=len(TEXT) - 1) as api, pytest.raises(TransportFault) as raised:
        api.ask("gzip")
    assert raised.value.kind is FaultKind.TOO_LARGE


@pytest.mark.parametrize("case", ["gzip", "raw-deflate", "twice", "identity"])
def test_transfer_codings_are_decoded_too(api: Api, case: str) -> None:
    """A server that compresses the transfer, though nobody asked for it, is understood."""
    assert (api.ask(f"transfer/{case}").body, api.ask(f"transfer/{case}").encoding) == (DECODED[case][2], "")


def test_repeated_headers_are_one_list(api: Api) -> None:
    """Codings in several headers were applied in their order."""
    assert api.ask("repeated/mixed").body == TEXT


def test_a_part_of_an_encoded_body_stays_as_it_came(api: Api) -> None:
    """A range of an encoded body cannot be decoded alone."""
    got = api.ask("206/gzip")
    assert (got.status, got.body, got.encoding) == (206, GZIP, "gzip")


@pytest.mark.parametrize(
    ("method", "path", "status"), [("HEAD", "gzip", 200), ("GET", "204/gzip", 204), ("GET", "304/br", 304)]
)
def test_no_body_is_not_encoded(api: Api, method: str, path: str, status: int) -> None:
    """An answer that has no body is whole, whatever coding its body would have had."""
    got = api.ask(path, method)
    assert (got.status, got.body, got.encoding) == (status, b"", "")
    assert got.headers["content-encoding"] == SENT[path.rpartition("/")[2]][0]


@pytest.mark.parametrize("status", [404, 500, 302])
def test_refusals_are_decoded(api: Api, status: int) -> None:
    """The body of a refusal is decoded like any other."""
    assert api.ask(f"{status}/gzip").body == TEXT


def test_only_what_can_be_decoded_is_asked_for(api: Api) -> None:
    """Servers are asked for gzip and deflate."""
    api.ask("gzip")
    assert api.server.requests[-1].headers["accept-encoding"] == "gzip, deflate"


@pytest.mark.parametrize("name", NAMES)
def test_a_cancelled_call_leaves_its_place(name: str, server: FaultyServer) -> None:
    """Whenever a call is cancelled, be it while its body is decoded, the only connection is free for the next one."""

    async def cancel_some(api: Api) -> bytes:
        for number in range(12):
            call = asyncio.ensure_future(api.transport.send("GET", server.url("/noise"), {}, None, 10))
            await asyncio.wait([call], timeout=0.002 * number)
            call.cancel()
            await asyncio.wait([call])
        return (await api.transport.send("GET", server.url("/noise"), {}, None, 10)).body

    with through(name, server, max_connections=1) as api:
        assert api.runner.run(cancel_some(api)) == NOISE
