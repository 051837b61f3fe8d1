"""Bodies of answers: whatever comes is decoded as it should be, or told as what it is, within bounds."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

from fuzzing import fuzz
from hypothesis import strategies as st

from callmill.jobs.body_text import is_text, json_of, text_of
from callmill.jobs.json_pointers import JsonPointers
from callmill.workers.transports.content_codings import decoded
from callmill.workers.transports.port import FaultKind, Response, TransportFault

_MOST_BYTES = 5_000
_POINTERS = JsonPointers({"a": "/a", "b": "/a/0", "c": "/b/c", "d": "/0"})


def _raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


_ENCODERS = {
    "gzip": gzip.compress,
    "x-gzip": lambda data: gzip.compress(data[: len(data) // 2]) + gzip.compress(data[len(data) // 2 :]),
    "deflate": zlib.compress,
    " Deflate": _raw_deflate,
    "identity": bytes,
}
_DATA = st.one_of(
    st.binary(max_size=300),
    st.builds(bytes.__mul__, st.binary(min_size=1, max_size=20), st.integers(0, 2_000)),
)
_CODINGS = st.lists(st.sampled_from(sorted(_ENCODERS)), max_size=4)
_CHANGE = st.tuples(st.integers(0, 400), st.integers(0, 8), st.binary(max_size=8))
_NAMES = st.sampled_from(["gzip", "x-gzip", "deflate", "identity", "br", "zstd", "", "gzip;q=1", "chunked"])
_CONTENT_TYPES = st.one_of(
    st.none(),
    st.text(max_size=60),
    st.builds(
        "{}; charset={}".format,
        st.sampled_from(["text/plain", "application/json", "image/png", ""]),
        st.sampled_from(
            [
                "utf-8",
                "utf-16",
                "utf-32",
                "utf-7",
                "latin1",
                "shift_jis",
                "euc-jp",
                "euc-kr",
                "gb2312",
                "gb18030",
                "big5",
                "hz",
                "iso-2022-jp",
                "iso-2022-kr",
                "koi8-r",
                "cp1252",
                "cp037",
                "mac-roman",
                "tis-620",
                "johab",
                "ptcp154",
                "utf-8-sig",
                "base64",
                "idna",
                "unknown",
                "ascii",
                "x-sjis",
            ]
        ),
    ),
)


def _encoded(data: bytes, codings: list[str]) -> bytes:
    for coding in codings:
        data = _ENCODERS[coding](data)
    return data


@fuzz(_DATA, _CODINGS)
def test_what_was_encoded_comes_back(data: bytes, codings: list[str]) -> None:
    """Any body in any codings that we know comes back to the byte, or is larger than the cap."""
    headers = {"content-encoding": ",".join(codings)} if codings else {}
    body = _encoded(data, codings)
    try:
        answer = decoded(Response(200, headers, body), _MOST_BYTES)
    except TransportFault as fault:
        assert fault.kind is FaultKind.TOO_LARGE  # noqa: PT017 - the other way is as good
        sizes = [len(_encoded(data, codings[:upto])) for upto in range(len(codings))]
        assert max(sizes) > _MOST_BYTES
    else:
        assert (answer.body, answer.encoding) == (data, "")


@fuzz(_DATA, _CODINGS, _CHANGE)
def test_a_changed_stream_is_whole_or_told(data: bytes, codings: list[str], change: tuple[int, int, bytes]) -> None:
    """A damaged body is kept as it came, or a fault; checksums let nothing pass for the body that is not."""
    at, removed, added = change
    body = _encoded(data, codings)
    body = body[:at] + added + body[at + removed :]
    try:
        answer = decoded(Response(200, {"content-encoding": ",".join(codings)}, body), _MOST_BYTES)
    except TransportFault as fault:
        assert fault.kind in (FaultKind.TOO_LARGE, FaultKind.PROTOCOL)  # noqa: PT017
        return
    assert len(answer.body) <= max(_MOST_BYTES, len(body))
    if answer.encoding:
        assert answer.body == body
    elif codings and codings[-1] in ("gzip", "deflate"):
        assert answer.body == data or len(codings) > 1 or not body


@fuzz(st.binary(max_size=300), st.lists(_NAMES, max_size=6), st.lists(_NAMES, max_size=3), st.sampled_from([200, 206]))
def test_any_bytes_under_any_name(body: bytes, content: list[str], transfer: list[str], status: int) -> None:
    """No bytes and no codings raise anything but a fault, and what is not decoded is what came."""
    headers = {"content-encoding": ", ".join(content), "transfer-encoding": ", ".join(transfer)}
    try:
        answer = decoded(Response(status, headers, body), _MOST_BYTES)
    except TransportFault as fault:
        assert fault.kind in (FaultKind.TOO_LARGE, FaultKind.PROTOCOL)  # noqa: PT017
    else:
        assert len(answer.body) <= _MOST_BYTES
        assert answer.body == body or not answer.encoding


_DECLARED = st.builds(
    lambda start, charset, rest: start + charset.encode() + rest,
    st.sampled_from([b"<?xml version='1.0' encoding=", b"<meta charset='", b"<meta content='text/html; charset="]),
    st.sampled_from(["latin1", "shift_jis", "utf-16", "utf-7", "hz", "idna", "zlib", "x" * 50, ""]),
    st.binary(max_size=200),
)


@fuzz(st.one_of(st.binary(max_size=200), st.text(max_size=100).map(str.encode), _DECLARED), _CONTENT_TYPES)
def test_any_bytes_are_read_as_text(body: bytes, content_type: str | None) -> None:
    """Text and JSON of any bytes under any content type are a value or a ValueError, never anything else."""
    text = text_of(body, content_type)
    assert isinstance(text, str)
    assert not is_text(body, content_type) or "\ufffd" not in text or b"\xef\xbf\xbd" in body or body[:1] > b"\x7f"
    try:
        json_of(body, content_type)
    except ValueError as error:
        assert str(error).startswith("the body is ")  # noqa: PT017
    _POINTERS.read(body)


_VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc0") | st.text(max_size=3), inner),
    max_leaves=8,
)


@fuzz(_VALUES, st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"]))
def test_json_in_every_unicode_encoding_is_read(value: Any, codec: str) -> None:
    """What Python writes as JSON is read as the same value, in each of the encodings that JSON may be in."""
    assert json_of(json.dumps(value, ensure_ascii=False).encode(codec), None) == value
