"""What comes from a queue or channel of the broker, checked before kombu and Celery see it.

They trust what they read: a field that is missing or of another type ends the consumer, and where a message says that
it came from is where it goes back to. So an envelope is a message of a known shape, or dropped. What it carries is the
matter of who consumes it.
"""

from __future__ import annotations

import zlib
from typing import Annotated, Any

import msgspec
from kombu.transport import virtual
from kombu.utils.json import loads
from msgspec import Meta, Struct, field

_MEBIBYTE = 1024 * 1024
MOST_BYTES = 64 * _MEBIBYTE
"""Size of a message: a plain call carries a body of 16 MiB, escaped, and as base64."""
MOST_BYTES_OF_HINT = 64 * 1024
_COUNTED_FROM_BYTES = 64 * 1024
_MOST_CONTAINERS, _MOST_ITEMS = 500_000, 8_000_000
"""A JSON text of many small parts takes a hundred times its size in memory."""
_ZLIB = "application/x-gzip"  # kombu's word for it

UNREADABLE = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError)
"""What kombu raises for a text that is no JSON, or none that it can make objects of."""

_Word = Annotated[str, Meta(max_length=255)]


class MalformedMessageError(ValueError):
    """A message is none; it was not taken."""


class _DeliveryInfo(Struct):
    routing_key: _Word | None = None
    redelivered: bool = False


class _Properties(Struct):
    delivery_tag: Annotated[str, Meta(min_length=1, max_length=255)]
    delivery_info: _DeliveryInfo | None = None
    body_encoding: _Word | None = None
    priority: Annotated[int, Meta(ge=0, le=255)] | None = None
    reply_to: _Word | None = None
    correlation_id: _Word | None = None


class _Envelope(Struct):
    properties: _Properties
    body: str | None = None
    headers: dict[str, Any] | None = None
    content_type: _Word | None = field(default=None, name="content-type")
    content_encoding: _Word | None = field(default=None, name="content-encoding")


def read_message(item: Any, exchange: str, queue: str, *, most_bytes: int) -> dict[str, Any]:
    """Return the envelope of a message that was found in a queue, or on a channel if there is an exchange.

    Raises:
        MalformedMessageError: It is none, or one out of all proportion.
    """
    if len(item) > most_bytes:
        raise MalformedMessageError(f"it has {len(item):,} bytes, at most {most_bytes:,} are read")
    refuse_many_parts(item if isinstance(item, bytes) else item.encode(errors="replace"))
    try:
        raw: dict[str, Any] = loads(item)  # type: ignore[no-untyped-call] # kombu is not annotated
        found = msgspec.convert(raw, _Envelope)
    except UNREADABLE as error:
        raise MalformedMessageError(f"it is no message: {error}") from error
    said = found.properties.delivery_info or _DeliveryInfo()
    # Where it goes back to, if it is not dealt with: where it was found, whatever it says.
    raw["properties"]["delivery_info"] = {
        "exchange": exchange,
        "routing_key": (said.routing_key or "") if exchange else queue,
        "redelivered": said.redelivered,
    }
    return raw if found.headers is None or "compression" not in found.headers else _inflated(raw, found)


def refuse_many_parts(text: bytes) -> None:
    """Refuse a JSON text of which parsing takes memory out of proportion to its size.

    Raises:
        MalformedMessageError: It is one.
    """
    if len(text) > _COUNTED_FROM_BYTES and (
        text.count(b"[") + text.count(b"{") > _MOST_CONTAINERS or text.count(b",") > _MOST_ITEMS
    ):
        raise MalformedMessageError("it consists of too many parts")


class CheckedMessage(virtual.Message):
    """A message of kombu; one with a body that is not in its encoding is malformed, too."""

    def __init__(self, payload: dict[str, Any], channel: Any = None, **kwargs: Any) -> None:
        try:
            super().__init__(payload, channel=channel, **kwargs)  # type: ignore[no-untyped-call] # as above
        except UNREADABLE as error:
            raise MalformedMessageError(f"its body cannot be decoded: {error}") from error


def _inflated(raw: dict[str, Any], found: _Envelope) -> dict[str, Any]:
    """Decompress a body here, within bounds: kombu knows none."""
    headers = dict(found.headers or {})
    if headers.pop("compression") != _ZLIB or found.properties.body_encoding != "base64":
        raise MalformedMessageError("it is compressed; send it uncompressed, or with zlib")
    inflate = zlib.decompressobj()
    try:
        body = inflate.decompress(virtual.Base64().decode(found.body or ""), MOST_BYTES)  # type: ignore[no-untyped-call]
        if not inflate.eof:
            raise MalformedMessageError(f"its body is cut off, or has more than {MOST_BYTES:,} bytes")
        text = body.decode()
    except (zlib.error, ValueError) as error:
        raise MalformedMessageError(f"its body cannot be decompressed: {error}") from error
    return raw | {
        "headers": headers,
        "body": text,
        "properties": raw["properties"] | {"body_encoding": "utf-8"},
    }
