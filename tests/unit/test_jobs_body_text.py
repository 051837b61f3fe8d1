"""What the bytes of an answer say, as text and as JSON."""

from __future__ import annotations

import codecs
import json

import pytest

from callmill.jobs import Outcome
from callmill.jobs.body_text import is_text, json_of, text_of

PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01"
JAPANESE = "日本語のテキスト、〜"
TEXTS = [
    ("text/plain; charset=ISO-8859-1", "café, 30 °C", "latin-1"),
    ('text/html; charset="Shift_JIS"', JAPANESE, "shift_jis"),
    ("text/html;CHARSET=shift_jis", "①髙", "cp932"),
    ("text/plain; charset=x-sjis", JAPANESE, "shift_jis"),
    ("text/plain; charset=EUC-JP", JAPANESE, "euc_jp"),
    ("text/plain; charset=ISO-2022-JP", "日本語", "iso2022_jp"),
    ("text/plain; charset=gb2312", "镕 and 中文", "gb18030"),
    ("text/plain; charset=KOI8-U", "Київ", "koi8_u"),
    ("text/plain; format=flowed; charset=windows-1252; x=y", "“quoted” €", "cp1252"),
    ("text/plain; charset=utf-16", "with a mark", "utf-16"),
    ("text/plain; charset=utf-16", "little", "utf-16-le"),
    ("text/plain; charset=utf-16", "big", "utf-16-be"),
    ("text/plain; charset=utf-32", "big", "utf-32-be"),
    ("text/plain; charset=us-ascii", "not at all: ä", "utf-8"),
    ("text/plain; charset=iso-8859-1", "the mark says otherwise: ä", "utf-8-sig"),
    (None, "with a mark: ä", "utf-16"),
    (None, "with a mark: ä", "utf-8-sig"),
    (None, "ä", "utf-8"),
    ("text/plain", "", "utf-8"),
    ("text/xml", '<?xml version="1.0" encoding="ISO-8859-1"?><a>Größe</a>', "latin-1"),
    (None, "\n<?xml version='1.0' encoding = 'windows-1252' ?><a>“€”</a>", "cp1252"),
    ("text/html", "<html><head><META charset=Shift_JIS></head>日本", "shift_jis"),
    ("text/html", '<meta http-equiv="Content-Type" content="text/html; charset=euc-jp"><p>日本', "euc_jp"),
    ("text/html", "<meta charset=iso-8859-1>UTF-8 all the same: Größe", "utf-8"),
    ("text/html; charset=koi8-r", "<meta charset=utf-8>Привет", "koi8_r"),
]


def outcome(body: bytes, **headers: str) -> Outcome:
    """Return an outcome with this body; headers have _ for -."""
    return Outcome(
        id="a",
        index=0,
        ok=True,
        status=200,
        body=body,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        error=None,
        attempts=1,
        started_at=1.0,
        latency=0.1,
    )


@pytest.mark.parametrize(("content_type", "text", "codec"), TEXTS)
def test_a_body_is_decoded_by_its_mark_or_its_charset(content_type, text, codec):
    """A byte order mark is obeyed and skipped; without one the stated charset counts, without that it is UTF-8."""
    body = text.encode(codec)
    assert text_of(body, content_type) == text
    assert is_text(body, content_type)


@pytest.mark.parametrize(
    "charset",
    ["zlib", "hex", "rot13", "idna", "punycode", "unicode-escape", "undefined", "aliases", "../x", "x" * 5000, "none"],
)
def test_what_is_no_charset_is_read_as_utf_8(charset):
    """An API can name nothing that makes Python do more than to decode text."""
    assert text_of("ä\\u0041".encode(), f"text/plain; charset={charset}") == "ä\\u0041"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (PNG, "image/png"),
        (PNG, None),
        (PNG, "text/plain; charset=ISO-8859-1"),
        (PNG, "image/png; charset=ISO-8859-1"),
        (b"\xff\xfe\x00", None),
        (b"\xe9", "text/plain; charset=unknown"),
        (b"\x81", "text/plain; charset=shift_jis"),
        (b"<meta charset=rot13>\xe9", "text/html"),
        (b"<meta charset=shift_jis>" + PNG, "text/html"),
    ],
)
def test_what_would_lose_bytes_as_text_is_no_text(body, content_type):
    """A body is text only where text loses nothing of it; to ask for the text anyway does no harm."""
    assert not is_text(body, content_type)
    assert isinstance(text_of(body, content_type), str)


@pytest.mark.parametrize(
    ("codec", "content_type"),
    [
        ("utf-8", "application/json"),
        ("utf-8-sig", "application/json"),
        ("utf-16", "application/json"),
        ("utf-16-le", None),
        ("utf-16-be", None),
        ("utf-32", None),
        ("utf-32-le", None),
        ("utf-32-be", "application/json; charset=utf-32"),
        ("latin-1", "application/json; charset=ISO-8859-1"),
        ("utf-8", "application/json; charset=ISO-8859-1"),
        ("utf-8", "text/html; charset=shift_jis"),
    ],
)
def test_json_is_parsed_in_every_charset(codec, content_type):
    """JSON is read in UTF-8 whatever is stated, with or without a mark, in UTF-16, UTF-32, and the stated charset."""
    value = {"name": "Müller", "n": [1, 2.5, None]}
    assert json_of(json.dumps(value, ensure_ascii=False).encode(codec), content_type) == value


def test_json_may_hold_half_a_surrogate_pair_and_large_numbers():
    """Odd JSON that is JSON is parsed: half a character, as text that was cut leaves it, duplicate names, numbers."""
    body = b'{"a": "cut \\ud83d", "b": 123456789012345678901234567890, "a2": 1, "a2": 2, "c": 1e999}'
    assert json_of(body, None) == {
        "a": "cut \ud83d",
        "b": 123456789012345678901234567890,
        "a2": 2,
        "c": float("inf"),
    }


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"[1",
        b'{"a": }',
        b"<html>",
        PNG,
        b"9" * 5000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000,
        codecs.BOM_UTF8 + b"[" * 100_000 + b"]" * 100_000,
        codecs.BOM_UTF16_LE + b"\x00",
    ],
)
@pytest.mark.parametrize("content_type", [None, "application/json; charset=utf-16", "text/html; charset=latin1"])
def test_what_is_no_json_is_a_value_error(body, content_type):
    """Whatever cannot be parsed is told as a ValueError, also what is nested 100 000 levels deep."""
    with pytest.raises(ValueError, match="the body is "):
        json_of(body, content_type)


def test_an_outcome_says_what_its_body_is():
    """The type is what the API stated, a body that is still encoded says how and is neither text nor JSON."""
    page = outcome("é".encode("latin-1"), content_type="text/html; charset=latin1")
    assert (page.text(), page.is_text, page.content_type) == ("é", True, "text/html; charset=latin1")
    encoded = outcome(b"{}", content_type="application/json", content_encoding="br")
    assert (encoded.content_encoding, encoded.is_text, encoded.text()) == ("br", False, "{}")
    with pytest.raises(ValueError, match="still encoded: br"):
        encoded.json()
    plain = outcome(b'{"a":1}')
    assert (plain.content_type, plain.content_encoding, plain.is_text, plain.json()) == (None, None, True, {"a": 1})
