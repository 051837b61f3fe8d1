"""A server that breaks HTTP/1.1 in every way we know, and marks each answer with the request that it is for.

The path of a request is ``/KIND/NONCE``: ``KIND`` says how to misbehave, and every answer carries the nonce of its own
request, in the header ``X-For`` and in the body. An answer that is for nobody, or for another request, carries
``STRAY``. So a client that hands out the wrong answer is always found out.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from faulty_server import Exchange

from callmill.workers.transports.port import FaultKind, Response

Behaviour: TypeAlias = Callable[[Exchange, str], Awaitable[None]]
STRAY = "stray"
LONG_BODY = b"x" * (8 << 20)
"""More than the buffers between two sockets hold: a client that sends it before it reads waits for the server."""

_CHUNKED = "Transfer-Encoding: chunked\r\n"


def proof(exchange: Exchange) -> str:
    """Return the nonce of a request."""
    return exchange.target.partition("?")[0].rsplit("/", 1)[-1]


def body_for(nonce: str) -> bytes:
    """Return the body of the answer to the request with this nonce."""
    return f'{{"for": "{nonce}"}}'.encode()


def chunks_for(nonce: str, trailers: str = "") -> bytes:
    """Return the same body in two chunks."""
    body = body_for(nonce)
    parts = (body[:3], body[3:])
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + f"0\r\n{trailers}\r\n".encode()


def head(nonce: str, extra: str = "", status: str = "200 OK", version: str = "1.1") -> bytes:
    """Return the head of an answer, with the proof and whatever says how long its body is."""
    return f"HTTP/{version} {status}\r\nX-For: {nonce}\r\n{extra}\r\n".encode()


def answer(nonce: str, extra: str = "", status: str = "200 OK", version: str = "1.1") -> bytes:
    """Return a whole answer in good order."""
    body = body_for(nonce)
    return head(nonce, f"Content-Length: {len(body)}\r\n{extra}", status, version) + body


def is_proven(response: Response, nonce: str) -> bool:
    """Say whether an answer is the one to the request with this nonce, and none of it is another one's."""
    whole, body = body_for(nonce), response.body
    return response.headers.get("x-for") == nonce and (whole.startswith(body) or body.startswith(whole))


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One way to behave, and what is right to make of it.

    Attributes:
        behave: Answers the request with the given nonce.
        faults: The kinds of fault that are right; empty: only the request's own answer is.
        own_answer: Whether the request's own answer is right.
        method: The method of the request.
        body: Its body.
        at_head: Whether the server answers before it reads the body.
        in_doubt: Whether the connection must not be used again; None: it may be.
        timed: Whether something comes by itself after the answer, be it the connection's end, so that it may cross the
            next request on its way.
    """

    behave: Behaviour
    faults: frozenset[FaultKind] = frozenset()
    own_answer: bool = True
    method: str = "GET"
    body: bytes | None = None
    at_head: bool = False
    in_doubt: bool | None = False
    timed: bool = False


def _answered(behave: Behaviour, **more: Any) -> Kind:
    """Answered: the request's own answer is right, and nothing else."""
    return Kind(behave=behave, **more)


def _failed(behave: Behaviour, *faults: FaultKind, **more: Any) -> Kind:
    """Failed: one of these faults is right, and no answer."""
    return Kind(behave=behave, faults=frozenset(faults), own_answer=False, **more)


def _either(behave: Behaviour, *faults: FaultKind, **more: Any) -> Kind:
    """Both are right: the request's own answer, or one of these faults."""
    return Kind(behave=behave, faults=frozenset(faults), **more)


def _sends(
    make: Callable[[str], bytes], *then: Callable[[str], bytes], pause_s: float = 0, close: bool = False
) -> Behaviour:
    """Send these pieces, with pauses between them, and close if asked to."""

    async def behave(exchange: Exchange, nonce: str) -> None:
        await exchange.raw(make(nonce))
        for piece in then:
            await asyncio.sleep(pause_s)
            await exchange.raw(piece(nonce))
        if close:
            exchange.writer.close()

    return behave


def _interim(status: str, headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nX-For: {STRAY}\r\n{headers}\r\n".encode()


async def _stray_while_idle(exchange: Exchange, stray: bytes) -> None:
    """Send what nobody asked for, unless the next request is there: then no client could tell it from the answer."""
    waiting = select.poll()
    waiting.register(exchange.writer.get_extra_info("socket").fileno(), select.POLLIN)
    if not exchange.reader._buffer and not waiting.poll(0):  # type: ignore[attr-defined]
        await exchange.raw(stray)


async def _reset(exchange: Exchange, nonce: str) -> None:
    await exchange.raw(answer(nonce))
    await asyncio.sleep(0.002)
    exchange.reset()


async def _late_stray(exchange: Exchange, nonce: str) -> None:
    """Answer, and once more a moment later."""
    await exchange.raw(answer(nonce))
    await asyncio.sleep(0.003)
    await _stray_while_idle(exchange, answer(STRAY))


async def _two_in_a_row(exchange: Exchange, nonce: str) -> None:
    await exchange.raw(answer(nonce))
    await _stray_while_idle(exchange, answer(STRAY))


async def _half_closed(exchange: Exchange, nonce: str) -> None:
    """Answer and say that nothing more will come, but go on reading."""
    await exchange.raw(answer(nonce))
    with contextlib.suppress(OSError):
        exchange.writer.write_eof()
    await exchange.reader.read(1)


async def _early_then_read(exchange: Exchange, nonce: str) -> None:
    await exchange.raw(answer(nonce))
    await exchange.reader.readexactly(int(exchange.headers["content-length"]))


async def _early_then_read_slowly(exchange: Exchange, nonce: str) -> None:
    """Answer and read the body so slowly that no client has sent all of it when it sees the answer."""
    await exchange.raw(answer(nonce))
    for _ in range(0, int(exchange.headers["content-length"]), 1 << 14):
        await exchange.reader.readexactly(1 << 14)
        await asyncio.sleep(0.002)


async def _early_then_close(exchange: Exchange, nonce: str) -> None:
    await exchange.raw(answer(nonce, "Connection: close\r\n", "413 Content Too Large"))
    exchange.writer.close()


async def _early_and_deaf(exchange: Exchange, nonce: str) -> None:
    """Answer before the body is read, then take the body for another request, which gets an answer too."""
    await exchange.raw(answer(nonce, "", "413 Content Too Large"))
    await asyncio.sleep(0.002)
    await exchange.raw(answer(STRAY, "", "400 Bad Request"))
    await exchange.reader.readexactly(int(exchange.headers["content-length"]))


async def _early_and_asleep(exchange: Exchange, nonce: str) -> None:
    """Answer when the client already waits to send more of a body that nobody reads."""
    await asyncio.sleep(0.1)
    await exchange.raw(answer(nonce, "", "413 Content Too Large"))
    await asyncio.sleep(60)


def _lengths(*values: str) -> Callable[[str], bytes]:
    return lambda nonce: head(nonce, "".join(f"Content-Length: {v}\r\n" for v in values)) + body_for(nonce)


def _own_length(nonce: str) -> str:
    return str(len(body_for(nonce)))


_BROKEN = (FaultKind.PROTOCOL, FaultKind.RESET)
_PROTOCOL = FaultKind.PROTOCOL

KINDS: dict[str, Kind] = {
    "good": _answered(_sends(answer)),
    "good-post": _answered(_sends(answer), method="POST", body=b"{}"),
    "slow": _answered(_sends(lambda n: head(n, f"Content-Length: {_own_length(n)}\r\n"), body_for, pause_s=0.005)),
    "chunked": _answered(_sends(lambda n: head(n, _CHUNKED) + chunks_for(n))),
    "trailers": _answered(
        _sends(lambda n: head(n, _CHUNKED) + chunks_for(n, f"X-For: {STRAY}\r\nContent-Length: 3\r\n"))
    ),
    "until-close": _answered(
        _sends(lambda n: head(n, "Connection: close\r\n") + body_for(n), close=True), in_doubt=True
    ),
    # Interim answers
    "100": _answered(_sends(lambda n: _interim("100 Continue") + answer(n))),
    "102": _answered(_sends(lambda n: _interim("102 Processing") + answer(n))),
    "103": _answered(_sends(lambda n: _interim("103 Early Hints", "Link: </a.css>; rel=preload\r\n") + answer(n))),
    "103-late": _answered(_sends(lambda _: _interim("103 Early Hints"), answer, pause_s=0.02)),
    "103-length": _answered(
        _sends(lambda _: _interim("103 Early Hints", "Content-Length: 20\r\n"), answer, pause_s=0.005)
    ),
    "many-1xx": _answered(
        _sends(
            lambda _: _interim("100 Continue") + _interim("102 Processing"),
            lambda _: _interim("103 Early Hints") * 3,
            lambda n: _interim("199 Whatever") + answer(n),
            pause_s=0.005,
        )
    ),
    "1xx-head": _answered(
        _sends(lambda n: _interim("103 Early Hints") + head(n, "Content-Length: 9\r\n")), method="HEAD"
    ),
    "101": _failed(
        _sends(lambda n: head(n, "Connection: upgrade\r\nUpgrade: x\r\n", "101 Switching Protocols") + answer(STRAY)),
        _PROTOCOL,
        in_doubt=True,
    ),
    "1xx-alone": _failed(_sends(lambda _: _interim("103 Early Hints"), close=True), FaultKind.RESET, in_doubt=True),
    # Early answers
    # By the time the client looks, the server may have read everything: then nothing is in doubt.
    "early-read": _answered(_early_then_read, method="POST", body=LONG_BODY, at_head=True, in_doubt=None),
    "early-slow-read": _answered(_early_then_read_slowly, method="POST", body=LONG_BODY, at_head=True, in_doubt=True),
    "early-close": _either(
        _early_then_close, FaultKind.RESET, method="POST", body=LONG_BODY, at_head=True, in_doubt=True
    ),
    "early-deaf": _answered(_early_and_deaf, method="POST", body=LONG_BODY, at_head=True, in_doubt=True),
    "early-asleep": _answered(_early_and_asleep, method="POST", body=LONG_BODY, at_head=True, in_doubt=True),
    # Answers that nobody asked for
    "two-at-once": _answered(_sends(lambda n: answer(n) + answer(STRAY)), in_doubt=True),
    "two-in-a-row": _answered(_two_in_a_row, in_doubt=True, timed=True),
    "late-stray": _answered(_late_stray, in_doubt=True, timed=True),
    "stray-408": _answered(
        _sends(lambda n: answer(n) + answer(STRAY, "Connection: close\r\n", "408 Request Timeout")), in_doubt=True
    ),
    "garbage-after": _answered(_sends(lambda n: answer(n) + b"\r\n\r\ngarbage"), in_doubt=True),
    "line-feeds-after": _answered(_sends(lambda n: answer(n) + b"\r\n\r\n"), in_doubt=True),
    "much-after": _answered(_sends(lambda n: answer(n) + b"x" * 50_000 + answer(STRAY) * 500), in_doubt=True),
    "half-of-a-stray": _answered(_sends(lambda n: answer(n) + answer(STRAY)[:30]), in_doubt=True),
    "after-chunks": _answered(_sends(lambda n: head(n, _CHUNKED) + chunks_for(n) + answer(STRAY)), in_doubt=True),
    # Lengths
    "lengths-differ": _failed(_sends(_lengths("5, 6")), _PROTOCOL, in_doubt=True),
    "two-lengths": _failed(_sends(_lengths("3", "20")), _PROTOCOL, in_doubt=True),
    "same-lengths": _answered(_sends(lambda n: _lengths(_own_length(n), _own_length(n))(n))),
    "same-lengths-list": _answered(_sends(lambda n: _lengths(f"{_own_length(n)}, {_own_length(n)}")(n))),
    "length-word": _failed(_sends(_lengths("many")), _PROTOCOL, in_doubt=True),
    "length-negative": _failed(_sends(_lengths("-5")), _PROTOCOL, in_doubt=True),
    "length-plus": _failed(_sends(_lengths("+5")), _PROTOCOL, in_doubt=True),
    "length-underscore": _failed(_sends(_lengths("1_0")), _PROTOCOL, in_doubt=True),
    "length-huge": _failed(_sends(_lengths("9" * 40)), _PROTOCOL, in_doubt=True),
    "longer-than-length": _answered(_sends(lambda n: _lengths("4")(n) + answer(STRAY)), in_doubt=True),
    "shorter-than-length": _failed(_sends(_lengths("100"), close=True), FaultKind.RESET, in_doubt=True),
    "length-and-chunks": _either(
        _sends(lambda n: head(n, f"Content-Length: 3\r\n{_CHUNKED}") + chunks_for(n) + answer(STRAY)),
        _PROTOCOL,
        in_doubt=True,
    ),
    "chunks-and-length": _either(
        _sends(lambda n: head(n, f"{_CHUNKED}Content-Length: 3\r\n") + chunks_for(n)), _PROTOCOL, in_doubt=None
    ),
    "says-chunked-is-not": _failed(
        _sends(lambda n: head(n, f"Content-Length: {_own_length(n)}\r\n{_CHUNKED}") + body_for(n) + answer(STRAY)),
        *_BROKEN,
        in_doubt=True,
    ),
    "chunked-twice": _either(
        _sends(lambda n: head(n, _CHUNKED * 2) + chunks_for(n), close=True), *_BROKEN, in_doubt=True, timed=True
    ),
    "unknown-coding": _either(
        _sends(lambda n: head(n, "Transfer-Encoding: strange\r\nContent-Length: 4\r\n") + body_for(n), close=True),
        *_BROKEN,
        in_doubt=True,
    ),
    "bad-chunk-size": _failed(
        _sends(lambda n: head(n, _CHUNKED) + b"zz\r\nabc\r\n0\r\n\r\n" + answer(STRAY)), _PROTOCOL, in_doubt=True
    ),
    "chunk-too-long": _failed(
        _sends(lambda n: head(n, _CHUNKED) + b"3\r\nabcdef\r\n0\r\n\r\n" + answer(STRAY)), _PROTOCOL, in_doubt=True
    ),
    "chunk-negative": _failed(
        _sends(lambda n: head(n, _CHUNKED) + b"-3\r\nabc\r\n0\r\n\r\n" + answer(STRAY)), _PROTOCOL, in_doubt=True
    ),
    "chunks-cut": _failed(
        _sends(lambda n: head(n, _CHUNKED) + chunks_for(n)[:-3], close=True), FaultKind.RESET, in_doubt=True
    ),
    "no-last-line": _failed(
        _sends(lambda n: head(n, _CHUNKED) + chunks_for(n)[:-2] + answer(STRAY)), _PROTOCOL, in_doubt=True
    ),
    # Answers without a body that have one
    "head-body": _answered(_sends(answer), method="HEAD", in_doubt=True),
    "204-body": _answered(_sends(lambda n: answer(n, status="204 No Content")), in_doubt=True),
    "204-chunks": _answered(_sends(lambda n: head(n, _CHUNKED, "204 No Content") + chunks_for(n)), in_doubt=True),
    "304-body": _answered(_sends(lambda n: answer(n, status="304 Not Modified")), in_doubt=True),
    # Versions and heads
    "old-keep-alive": _answered(_sends(lambda n: answer(n, "Connection: keep-alive\r\n", version="1.0"))),
    "old": _answered(_sends(lambda n: answer(n, version="1.0"), close=True), in_doubt=True),
    "old-not-closed": _answered(_sends(lambda n: answer(n, version="1.0") + answer(STRAY)), in_doubt=True),
    "old-chunked": _either(
        _sends(lambda n: head(n, f"{_CHUNKED}Connection: keep-alive\r\n", version="1.0") + chunks_for(n), close=True),
        *_BROKEN,
        in_doubt=True,
    ),
    "version-2": _failed(_sends(lambda n: answer(n, version="2.0")), _PROTOCOL, in_doubt=True),
    "not-http": _failed(_sends(lambda _: b"SSH-2.0-OpenSSH_9.2\r\n\r\n" + answer(STRAY)), _PROTOCOL, in_doubt=True),
    "bad-status": _failed(_sends(lambda n: answer(n, status="2x0 OK")), _PROTOCOL, in_doubt=True),
    "status-0": _failed(_sends(lambda n: answer(n, status="0 OK")), _PROTOCOL, in_doubt=True),
    **{
        # What stands behind such a line is not read by every client: be it the length, the chunks or the encoding.
        f"{name}-{what}": _failed(
            _sends(lambda n, line=line, rest=rest: head(n, f"{line}\r\n{rest}") + chunks_for(n)),
            _PROTOCOL,
            in_doubt=True,
        )
        for name, line in (("no-colon", "no colon here"), ("space-before-colon", "X-Foo : 1"))
        for what, rest in (("length", "Content-Length: 3\r\n"), ("chunks", _CHUNKED))
    },
    "many-headers": _failed(_sends(lambda n: answer(n, "X-A: 1\r\n" * 5000)), _PROTOCOL, in_doubt=True),
    "long-header": _failed(_sends(lambda n: answer(n, "X-A: " + "1" * (1 << 20) + "\r\n")), _PROTOCOL, in_doubt=True),
    # Headers that something looks into
    "location-port": _answered(_sends(lambda n: answer(n, "Location: http://x:99999/\r\n", "302 Found"))),
    "location-junk": _answered(_sends(lambda n: answer(n, "Location: http://[::1/x\r\n", "302 Found"))),
    "charset-empty": _answered(_sends(lambda n: answer(n, "Content-Type: text/html; charset\r\n"))),
    "cookie-junk": _answered(_sends(lambda n: answer(n, "Set-Cookie: =;;; Expires=x; Max-Age=y; Domain=..\r\n"))),
    # Ends of connections
    "close": _answered(_sends(answer, close=True), in_doubt=True, timed=True),
    "close-said": _answered(_sends(lambda n: answer(n, "Connection: close\r\n"), close=True), in_doubt=True),
    "close-said-not-done": _answered(
        _sends(lambda n: answer(n, "Connection: close\r\n") + answer(STRAY)), in_doubt=True
    ),
    "half-closed": _answered(_half_closed, in_doubt=True, timed=True),
    "reset-between": _answered(_reset, in_doubt=True, timed=True),
    "no-answer": _failed(_sends(lambda _: b"", close=True), FaultKind.RESET, in_doubt=True),
}


def _kind(exchange: Exchange) -> Kind:
    return KINDS[exchange.target.split("/")[-2]]


async def misbehave(exchange: Exchange) -> None:
    """Behave as the path says, once the whole request is there."""
    await _kind(exchange).behave(exchange, proof(exchange))


def misbehave_at_head(exchange: Exchange) -> Awaitable[None] | None:
    """Behave as the path says before the body is read, where that is what it says."""
    kind = _kind(exchange)
    return kind.behave(exchange, proof(exchange)) if kind.at_head else None
