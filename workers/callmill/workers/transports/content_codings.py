"""Content codings of answers (RFC 9110, section 8.4.1): decoded here for every transport, so that all do the same.

An answer is decoded completely or not at all: what we did not ask for, or what would lose bytes, is kept as it came,
and its headers go on to name the codings.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import TypeAlias

from callmill.workers.transports.port import FaultKind, Response, TransportFault, too_large

ACCEPT_ENCODING = "gzip, deflate"

_MOST_CODINGS = 4
_MOST_MEMBERS = 10_000
_SHORTEST_PIECE_BYTES, _LONGEST_PIECE_BYTES = 1024, 1 << 20
_GZIP, _ZLIB, _RAW = zlib.MAX_WBITS | 16, zlib.MAX_WBITS, -zlib.MAX_WBITS
_PARTIAL_CONTENT = 206

_Decoder: TypeAlias = Callable[[bytes, int], bytes]


class _NotDecodableError(Exception):
    """Decoding would lose a part of the body."""


_SMALL_BYTES = 1 << 18


class _MalformedError(Exception):
    """The body is not what its coding says."""


def decoded(answer: Response, max_bytes: int) -> Response:
    """Return an answer decoded by its headers, or as it is with ``encoding`` set.

    Args:
        answer: What came, with the headers that came.
        max_bytes: How many bytes its decoded body may have.

    Raises:
        TransportFault: PROTOCOL: it is malformed or ends early. TOO_LARGE.
    """
    if not is_encoded(answer):
        return answer
    names = _names(answer.headers.get("content-encoding")) + _names(answer.headers.get("transfer-encoding"))
    try:
        body = _decode(answer, names, max_bytes)
    except _NotDecodableError:
        return Response(answer.status, answer.headers, answer.body, ", ".join(names))
    except (_MalformedError, zlib.error) as error:
        message = f"the answer's body cannot be decoded as {', '.join(names)}: {error}"
        raise TransportFault(FaultKind.PROTOCOL, message, sent=True) from error
    return Response(answer.status, _without_coding(answer.headers), body)


def decoded_if_small(answer: Response, max_bytes: int) -> Response | None:
    """Return what ``decoded`` does; None if that may take much memory, which the caller first asks for.

    Raises:
        TransportFault: PROTOCOL: it is malformed or ends early. TOO_LARGE.
    """
    if len(answer.body) >= _SMALL_BYTES:
        return None
    try:
        return decoded(answer, min(max_bytes, _SMALL_BYTES))
    except TransportFault as fault:
        if fault.kind is FaultKind.TOO_LARGE and max_bytes > _SMALL_BYTES:
            return None
        raise


def is_encoded(answer: Response) -> bool:
    """Say whether a body may have to be decoded."""
    content, transfer = answer.headers.get("content-encoding"), answer.headers.get("transfer-encoding")
    return bool(answer.body) and not (content is None and (transfer is None or transfer == "chunked"))


def _names(header: str | None) -> list[str]:
    """Return the codings that a header names, in the order in which they were applied; the transport undoes chunks."""
    names = [part.strip().lower() for part in (header or "").split(",")]
    if names[-1] == "chunked":
        names.pop()
    return [name for name in names if name not in ("", "identity")]


def _decode(answer: Response, names: list[str], max_bytes: int) -> bytes:
    body = answer.body
    # A part of an encoded body cannot be decoded without the other parts.
    if answer.status == _PARTIAL_CONTENT or len(names) > _MOST_CODINGS or not _DECODERS.keys() >= set(names):
        raise _NotDecodableError
    for name in reversed(names):
        body = _DECODERS[name](body, max_bytes)
    return body


def _gunzip(body: bytes, max_bytes: int) -> bytes:
    """Decode gzip, of which all members belong to the body; zeros after them are padding."""
    members: list[bytes] = []
    at, left = 0, max_bytes
    while at < len(body):
        if members and body[at : at + 2] != b"\x1f\x8b":
            if body[at:].strip(b"\0"):
                raise _NotDecodableError
            break
        if len(members) == _MOST_MEMBERS:
            raise _NotDecodableError
        member, at = _inflate(body, at, _GZIP, left)
        members.append(member)
        left -= len(member)
    return members[0] if len(members) == 1 else b"".join(members)


def _inflate_either(body: bytes, max_bytes: int) -> bytes:
    """Decode deflate, in zlib's format as it should be, or without it as many servers send it."""
    try:
        data, end = _inflate(body, 0, _ZLIB, max_bytes)
    except (_MalformedError, zlib.error) as error:
        try:
            data, end = _inflate(body, 0, _RAW, max_bytes)
        except (_MalformedError, zlib.error):
            raise error from None
    if end < len(body):
        raise _NotDecodableError
    return data


def _inflate(body: bytes, start: int, wbits: int, max_bytes: int) -> tuple[bytes, int]:
    """Decode one stream; return its data, and where it ends.

    It is fed in pieces, as zlib copies all that follows a stream: that would be quadratic in the number of streams.
    """
    stream = zlib.decompressobj(wbits)
    found: list[bytes] = []
    at, length, left = start, _SHORTEST_PIECE_BYTES, max_bytes
    while not stream.eof:
        piece = body[at : at + length]
        if not piece:
            raise _MalformedError("it ends early")
        at += len(piece)
        length = min(2 * length, _LONGEST_PIECE_BYTES)
        data = stream.decompress(piece, left + 1)
        left -= len(data)
        if left < 0:
            raise too_large(max_bytes)
        found.append(data)
    return found[0] if len(found) == 1 else b"".join(found), at - len(stream.unused_data)


def _without_coding(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of the decoded body: neither its coding nor its length is that of what was sent."""
    return {name: value for name, value in headers.items() if name not in ("content-encoding", "content-length")}


_DECODERS: dict[str, _Decoder] = {"gzip": _gunzip, "x-gzip": _gunzip, "deflate": _inflate_either}
