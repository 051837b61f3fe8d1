"""What the transport suites share: the transports under test, and servers' behaviours by path."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from typing import Any

from faulty_server import Exchange

from callmill.workers.transports.port import TransportOptions

NAMES = ("pyreqwest", "requests")
LARGE_BYTES = 1 << 20
BOMB = b"\0" * (4 << 20)


def options(**changes: Any) -> TransportOptions:
    """Options that allow this machine's own addresses."""
    defaults: dict[str, Any] = {
        "max_connections": 16,
        "max_response_bytes": 1 << 20,
        "allow_private_addresses": True,
        "connect_timeout_s": 5.0,
    }
    return TransportOptions(**(defaults | changes))


async def answer_by_path(exchange: Exchange) -> None:
    """Behave as the last part of the path says."""
    await _BEHAVIOURS.get(exchange.target.rsplit("/", 1)[-1], Exchange.answer)(exchange)


async def _hang(exchange: Exchange) -> None:
    await exchange.reader.read(1)


async def _drip(exchange: Exchange) -> None:
    await exchange.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n")
    while True:
        await exchange.raw(b"x")
        await asyncio.sleep(0.02)


async def _drip_head(exchange: Exchange) -> None:
    await exchange.raw(b"HTTP/1.1 200 OK\r\n")
    while True:
        await exchange.raw(b"X-Filler: 1\r\n")
        await asyncio.sleep(0.05)


async def _endless(exchange: Exchange) -> None:
    await exchange.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        await exchange.raw(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")


async def _reset(exchange: Exchange) -> None:
    exchange.reset()


async def _close(exchange: Exchange) -> None:
    exchange.writer.close()


async def _reset_in_body(exchange: Exchange) -> None:
    await exchange.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")
    exchange.reset()


async def _truncated(exchange: Exchange) -> None:
    await exchange.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")
    exchange.writer.close()


async def _truncated_chunks(exchange: Exchange) -> None:
    await exchange.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n")
    exchange.writer.close()


async def _bad_chunks(exchange: Exchange) -> None:
    await exchange.raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabcde\r\n")
    exchange.writer.close()


async def _not_http(exchange: Exchange) -> None:
    await exchange.raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
    exchange.writer.close()


async def _bad_gzip(exchange: Exchange) -> None:
    await exchange.answer(headers="Content-Encoding: gzip\r\n", body=b"this is no gzip")


async def _gzip(exchange: Exchange) -> None:
    await exchange.answer(headers="Content-Encoding: gzip\r\n", body=gzip.compress(b"plain"))


async def _gzip_bomb(exchange: Exchange) -> None:
    await exchange.answer(headers="Content-Encoding: gzip\r\n", body=gzip.compress(BOMB))


async def _deflate_bomb(exchange: Exchange) -> None:
    await exchange.answer(headers="Content-Encoding: deflate\r\n", body=zlib.compress(BOMB))


async def _large(exchange: Exchange) -> None:
    await exchange.answer(body=b"x" * LARGE_BYTES)


async def _claims_much(exchange: Exchange) -> None:
    await exchange.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9000000000000000000\r\n\r\n")
    if exchange.method != "HEAD":
        await exchange.raw(b"x" * (2 << 20))
        await exchange.reader.read(1)


async def _repeated(exchange: Exchange) -> None:
    await exchange.answer(headers="X-One: a\r\nx-one: b\r\nX-Two: c\r\nX-Odd: \xe9\r\n")


async def _until_close(exchange: Exchange) -> None:
    await exchange.raw(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nto the end")
    exchange.writer.close()


async def _cookie(exchange: Exchange) -> None:
    await exchange.answer(headers="Set-Cookie: session=secret; Path=/\r\n")


async def _204(exchange: Exchange) -> None:
    await exchange.raw(b"HTTP/1.1 204 No Content\r\n\r\n")


async def _304(exchange: Exchange) -> None:
    await exchange.raw(b'HTTP/1.1 304 Not Modified\r\nETag: "1"\r\n\r\n')


async def _soon(exchange: Exchange) -> None:
    await asyncio.sleep(0.02)
    await exchange.answer()


async def _second(exchange: Exchange) -> None:
    await asyncio.sleep(1)
    await exchange.answer()


async def _redirect(exchange: Exchange) -> None:
    await exchange.answer(f"{exchange.target[-3:]} Elsewhere", "Location: /elsewhere\r\n", b"")


async def _long_redirect(exchange: Exchange) -> None:
    await exchange.answer("302 Found", "Location: /elsewhere\r\n", b"moved")


async def _endless_redirect(exchange: Exchange) -> None:
    await exchange.raw(b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        await exchange.raw(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")


_BEHAVIOURS = {
    "long-redirect": _long_redirect,
    "endless-redirect": _endless_redirect,
    "hang": _hang,
    "drip": _drip,
    "drip-head": _drip_head,
    "endless": _endless,
    "reset": _reset,
    "close": _close,
    "reset-in-body": _reset_in_body,
    "truncated": _truncated,
    "truncated-chunks": _truncated_chunks,
    "bad-chunks": _bad_chunks,
    "not-http": _not_http,
    "bad-gzip": _bad_gzip,
    "gzip": _gzip,
    "gzip-bomb": _gzip_bomb,
    "deflate-bomb": _deflate_bomb,
    "large": _large,
    "claims-much": _claims_much,
    "repeated": _repeated,
    "until-close": _until_close,
    "cookie": _cookie,
    "204": _204,
    "304": _304,
    "soon": _soon,
    "second": _second,
    **dict.fromkeys(("301", "302", "303", "307", "308"), _redirect),
}
