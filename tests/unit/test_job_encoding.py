"""What bodies and parameters become on the wire, and how what cannot be written is named."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from email import message_from_bytes
from email.policy import HTTP
from enum import Enum, IntEnum
from types import MappingProxyType
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from callmill.errors import JobError
from callmill.jobs import Job
from callmill.jobs.encoding import encode_body, with_params
from callmill.jobs.json_body import NotJsonError, encode_json


class Colour(Enum):
    """An enum with text as its values."""

    RED = "red"


class Level(IntEnum):
    """An enum that is a number, too."""

    LOW = 1


class Person(BaseModel):
    """A model of pydantic."""

    born: date
    weight: float = 1.5


@dataclass
class Pair:
    """A dataclass."""

    one: Any
    two: Any = None


class OwnText(str):
    """Text of a class of its own, as numpy and YAML loaders have it."""

    __slots__ = ()


class OwnFloat(float):
    """A number of a class of its own, as numpy.float64 is."""


class Array:
    """What numpy's arrays and numbers offer."""

    def __init__(self, value: Any, kind: str = "f", shape: tuple[int, ...] = ()) -> None:
        self._value, self.shape = value, shape
        self.dtype = type("dtype", (), {"kind": kind})()

    def tolist(self) -> Any:
        """Return it as Python's own."""
        return self._value

    item = tolist


def body_of(**fields: Any) -> tuple[bytes | None, str | None]:
    """Return the body and content type of a job with these fields."""
    return encode_body(Job("POST", "/", api="a", **fields), 7)


WRITTEN = {
    "text": ("a b&ü", "a+b%26%C3%BC"),
    "truth": (True, "true"),
    "untruth": (False, "false"),
    "nothing": (None, None),
    "integer": (-7, "-7"),
    "number": (1.5, "1.5"),
    "decimal": (Decimal("1.10"), "1.10"),
    "date": (date(2026, 3, 1), "2026-03-01"),
    "time": (datetime(2026, 3, 1, 10, tzinfo=UTC), "2026-03-01T10%3A00%3A00%2B00%3A00"),
    "UUID": (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    "enum": (Colour.RED, "red"),
    "enum of numbers": (Level.LOW, "1"),
    "bytes": (b"\xff", "%FF"),
    "text of its own class": (OwnText("x"), "x"),
    "number of numpy": (Array(3, "i"), "3"),
}


@pytest.mark.parametrize(("value", "text"), WRITTEN.values(), ids=WRITTEN)
def test_values_of_queries_and_forms(value, text):
    """A value is written in JSON's words or as plain text; None is left out; a list repeats the name."""
    one = "" if text is None else f"k={text}"
    assert with_params("/x", {"k": value}, 0) == (f"/x?{one}" if one else "/x")
    assert body_of(data={"k": value}) == (one.encode(), "application/x-www-form-urlencoded")
    many = "" if text is None else f"k={text}&k={text}"
    assert with_params("/x", {"k": [value, None, value]}, 0) == (f"/x?{many}" if many else "/x")


REFUSED = {
    "dict": ({"name": 1}, "k", 'such as "k[name]"'),
    "generator": ((n for n in ()), "k", "generator"),
    "object": (object(), "k", "type object cannot be written"),
    "set": ({1}, "k", "or a list of those"),
    "list in a list": ([[1]], "k[0]", "list"),
    "not a number": (math.nan, "k", "nan"),
    "infinity in a list": ([1, -math.inf], "k[1]", "-inf"),
    "decimal that is no number": (Decimal("NaN"), "k", "NaN"),
    "infinity of numpy": (Array(math.inf), "k", "inf"),
    "array of numpy": (Array([1], shape=(1,)), "k", "Array"),
    "half a character": ("\udc00", "k", "surrogate"),
}


@pytest.mark.parametrize(("value", "path", "words"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("field", ["params", "data"])
def test_what_no_query_or_form_has(field, value, path, words):
    """What has no plain text is refused under its name, with the remedy, in queries as in forms."""
    with pytest.raises(JobError) as raised:
        with_params("/x", {"k": value}, 7) if field == "params" else body_of(data={"k": value})
    assert raised.value.field == f"{field}.{path}"
    assert words in str(raised.value)


JSON = {
    "enum": ([Colour.RED, Level.LOW], b'["red",1]'),
    "date and UUID": ([date(2026, 3, 1), UUID(int=0)], b'["2026-03-01","00000000-0000-0000-0000-000000000000"]'),
    "decimal": (Decimal("1.10"), b'"1.10"'),
    "bytes": (b"\xff", b'"/w=="'),
    "sets": ({"a": {1}}, b'{"a":[1]}'),
    "model of pydantic": ({"p": Person(born=date(2000, 1, 2))}, b'{"p":{"born":"2000-01-02","weight":1.5}}'),
    "dataclass": (Pair(1), b'{"one":1,"two":null}'),
    "own classes": ([OwnText("x"), OwnFloat(1.5), MappingProxyType({"a": 1})], b'["x",1.5,{"a":1}]'),
    "array of numpy": ({"v": Array([1, 2], shape=(2,))}, b'{"v":[1,2]}'),
    "large integers": ([2**80, None, 0.5], b"[1208925819614629174706176,null,0.5]"),
    "many numbers": ([1.5] * 9, b"[1.5,1.5,1.5,1.5,1.5,1.5,1.5,1.5,1.5]"),
}


@pytest.mark.parametrize(("value", "body"), JSON.values(), ids=JSON)
def test_json(value, body):
    """What JSON libraries know how to write is written."""
    assert body_of(json=value) == (body, "application/json")


NO_JSON = {
    "not a number": (math.nan, "", "nan is no number"),
    "infinity deep inside": ({"items": [{}, {"when": -math.inf}]}, ".items[1].when", "give None to send null"),
    "not a number behind many": ([1.5] * 9 + [math.nan], "[9]", "nan"),
    "not a number beside a large integer": ([2**80, math.nan], "[1]", "nan"),
    "not a number of its own class": ({"v": [OwnFloat("nan")]}, ".v[0]", "nan"),
    "not a number in an array": ({"v": Array([1.0, math.inf], shape=(2,))}, ".v[1]", "inf"),
    "not a number in a dataclass": ([Pair(1, math.nan)], "[0].two", "nan"),
    "not a number in a model": ({"p": Person(born=date(2000, 1, 2), weight=math.nan)}, ".p.weight", "nan"),
    "not a number as a key": ({"a": {math.nan: 1}}, ".a", "as a key"),
    "times of numpy": ({"t": Array([1], "M", (1,))}, ".t", "type Array"),
    "object": ({"a b": [0, object()]}, "['a b'][1]", "type object cannot be written as JSON; convert it"),
    "generator in a dataclass": (Pair([(n for n in ())]), ".one[0]", "generator"),
    "class": ({"p": Person}, ".p", "give an instance"),
    "key that is no text": ({"a": {(1, 2): 3}}, ".a", "(1, 2) as a key"),
    "half a character": ({"items": ["ok", "\ud800"]}, ".items[1]", "lone surrogate"),
    "key with half a character": ({"a": {"\ud800": 1}}, ".a", "lone surrogate"),
}


@pytest.mark.parametrize(("value", "path", "words"), NO_JSON.values(), ids=NO_JSON)
def test_what_json_cannot_carry(value, path, words):
    """What JSON cannot carry is refused, never sent as null: with the path to it, and the remedy."""
    with pytest.raises(JobError) as raised:
        body_of(json=value)
    assert raised.value.field == f"json{path}"
    assert words in str(raised.value)
    str(raised.value).encode()


@given(st.recursive(st.floats() | st.integers() | st.none() | st.text(), lambda inner: st.lists(inner, max_size=6)))
def test_null_is_sent_for_none_only(value):
    """Whatever numbers are where: what is written reads back as it was, and what is refused has NaN or infinity."""

    def finite(part: Any) -> bool:
        return all(map(finite, part)) if isinstance(part, list) else not isinstance(part, float) or math.isfinite(part)

    try:
        assert msgspec.json.decode(encode_json(value)) == value
    except NotJsonError:
        assert not finite(value)
    else:
        assert finite(value)


def test_files():
    """Files and fields go out as multipart/form-data that a parser reads back; the same job has the same bytes."""
    fields: dict[str, Any] = {
        "data": {"purpose": "batch", "n": [1, None, True]},
        "files": {"one": b"\r\n--\x00\xff", "two": ('na"mé.csv', b"a,b", "text/csv"), "three": ("x.png", b"")},
    }
    body, content_type = body_of(**fields)
    assert (body, content_type) == body_of(**fields)
    parsed = message_from_bytes(f"content-type: {content_type}\r\n\r\n".encode() + body, policy=HTTP)
    parts = [
        (part.get_param("name", header="content-disposition"), part.get_content_type(), part.get_payload(decode=True))
        for part in parsed.iter_parts()
    ]
    assert parts == [
        ("purpose", "text/plain", b"batch"),
        ("n", "text/plain", b"1"),
        ("n", "text/plain", b"true"),
        ("one", "application/octet-stream", b"\r\n--\x00\xff"),
        ("two", "text/csv", b"a,b"),
        ("three", "image/png", b""),
    ]
    assert 'filename="na%22mé.csv"'.encode() in body


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"json": {}, "files": {"f": b""}}, "files"),
        ({"data": b"raw", "files": {"f": b""}}, "data"),
        ({"files": [b""]}, "files"),
        ({"files": {7: b""}}, "files"),
        ({"files": {"f": 7}}, "files.f"),
        ({"files": {"f": ("name",)}}, "files.f"),
        ({"files": {"f": ("a\r\nb: c", b"")}}, "files.f"),
        ({"files": {"f": ("a", b"", "text/plain\r\nb: c")}}, "files.f"),
        ({"files": {"\ud800": b""}}, "files"),
        ({"data": {"a": object()}, "files": {"f": b""}}, "data.a"),
    ],
)
def test_files_that_cannot_be_sent(fields, field):
    """Files that are none, or that would put lines into the body's headers, are refused under their name."""
    with pytest.raises(JobError) as raised:
        body_of(**fields)
    assert raised.value.field == field
