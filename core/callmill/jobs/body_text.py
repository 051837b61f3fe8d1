"""Bodies as text: which characters the bytes of an answer stand for.

A byte order mark says it first, as in browsers; then the charset that the API stated; otherwise it is UTF-8, or what
XML or HTML themselves declare.
"""

from __future__ import annotations

import codecs
import encodings
import json
import pkgutil
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import cache, lru_cache
from typing import Any

import msgspec

_CHARSET = re.compile(r";\s*charset\s*=\s*\"?\s*([A-Za-z0-9_.:+-]{1,40})\s*\"?\s*(?:;|$)", re.ASCII | re.IGNORECASE)
_LONGEST_CONTENT_TYPE = 1000
_DECLARED = re.compile(
    rb"(?:^\s{0,9}<\?xml[^>]{0,99}?\sencoding\s{0,9}=|<meta\s[^>]{0,199}?charset\s{0,9}=)\s{0,9}[\"']?([A-Za-z0-9_.:+-]{1,40})",
    re.IGNORECASE,
)
"""How XML and HTML say their charset themselves: asked only of what is not UTF-8."""

_DECLARED_WITHIN_BYTES = 1024
_NO_TEXT = ("image/", "audio/", "video/", "font/")
_MARKS = (
    (codecs.BOM_UTF8, "utf_8"),
    (codecs.BOM_UTF32_LE, "utf_32_le"),  # before UTF-16, whose mark is the beginning of this one
    (codecs.BOM_UTF32_BE, "utf_32_be"),
    (codecs.BOM_UTF16_LE, "utf_16_le"),
    (codecs.BOM_UTF16_BE, "utf_16_be"),
)
_MARK_STARTS = frozenset(mark[0] for mark, _ in _MARKS)
_SUPERSETS = {
    "ascii": "utf_8",
    "utf_8_sig": "utf_8",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "euc_kr": "cp949",
    "shift_jis": "cp932",
}
"""Charsets that are stated where a larger one is meant, as https://encoding.spec.whatwg.org/ has them."""

_OTHER_NAMES = {"x_sjis": "shift_jis", "windows_874": "cp874"}
"""Names in use that Python does not know."""

_UNMISTAKABLE = frozenset({"utf_8", "ascii"})

_NO_CHARSETS = frozenset({"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "mbcs", "oem"})
"""Python's codecs for text that are no charsets."""

_BINARY = re.compile("[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")
"""Control characters of no text: see https://mimesniff.spec.whatwg.org/#binary-data-byte."""


def text_of(body: bytes, content_type: str | None) -> str:
    """Return a body as text; what is no character becomes U+FFFD."""
    mark, stated = _charset_of(body, content_type)
    charset = stated
    for charset in _possible(body, mark, stated):
        with suppress(UnicodeError):
            return body[mark:].decode(charset)
    return body[mark:].decode(charset, errors="replace")


def is_text(body: bytes, content_type: str | None) -> bool:
    """Say whether a body is text, of which ``text_of`` loses nothing."""
    mark, stated = _charset_of(body, content_type)
    for charset in _possible(body, mark, stated):
        with suppress(UnicodeError):
            text = body[mark:].decode(charset)
            # UTF-8 is unmistakable. In other charsets, nearly all bytes are characters, even those of a picture.
            return charset in _UNMISTAKABLE or _BINARY.search(text) is None
    return False


def without_mark(body: bytes) -> bytes:
    """Return a body in UTF-8 and without a byte order mark; one that has none is returned as it is."""
    mark, charset = _mark_of(body)
    if not mark:
        return body
    return body[mark:] if charset == "utf_8" else body[mark:].decode(charset, errors="replace").encode()


def json_of(body: bytes, content_type: str | None) -> Any:
    """Parse a body as JSON: in UTF-8, as JSON should be, or else in UTF-16, UTF-32, or the charset stated.

    Raises:
        ValueError: It is no JSON, or is nested too deeply to parse.
    """
    try:
        try:
            return msgspec.json.decode(body)
        except ValueError:
            return _other_json(body, content_type)
    except RecursionError as error:
        raise ValueError("the body is nested too deeply to parse as JSON") from error
    except ValueError as error:
        raise ValueError(f"the body is not JSON, or holds what cannot be parsed: {error}") from error


def _other_json(body: bytes, content_type: str | None) -> Any:
    """Parse JSON in any charset, and with what only Python's parser takes, such as half a surrogate pair."""
    mark, charset = _charset_of(body, content_type)
    if not mark and b"\0" in body[:4]:
        charset = json.detect_encoding(body)
    elif not mark and charset != "utf_8":
        # Servers state a charset by habit, and JSON is in UTF-8 all the same.
        with suppress(ValueError):
            return json.loads(body.decode())
    return json.loads(body[mark:].decode(charset))


def _charset_of(body: bytes, content_type: str | None) -> tuple[int, str]:
    """Return the length of the byte order mark, and the codec of what follows it.

    A picture that begins with the two bytes that mark UTF-16 is no text.
    """
    mark, charset = _mark_of(body)
    if mark and (charset == "utf_8" or content_type is None or not _is_no_text(content_type)):
        return mark, charset
    charset = "utf_8" if content_type is None else _stated_charset(content_type)
    if charset in ("utf_16", "utf_32"):  # without a mark, the first character's zeros tell the order
        charset += "_be" if body[:1] == b"\0" else "_le"
    return 0, charset


def _possible(body: bytes, mark: int, stated: str) -> Iterator[str]:
    """Yield the codecs that a body may be in, the likeliest first."""
    yield stated
    if stated in _SUPERSETS:
        yield _SUPERSETS[stated]
    elif stated == "utf_8" and not mark and (found := _DECLARED.search(body[:_DECLARED_WITHIN_BYTES])):
        yield _codec(found[1].decode())


def _mark_of(body: bytes) -> tuple[int, str]:
    if body and body[0] in _MARK_STARTS:
        for mark, charset in _MARKS:
            if body.startswith(mark):
                return len(mark), charset
    return 0, "utf_8"


@lru_cache(maxsize=256)
def _stated_charset(content_type: str) -> str:
    """Return the codec of the charset that a content type states; UTF-8 if it states none that is known."""
    found = _CHARSET.search(content_type[:_LONGEST_CONTENT_TYPE])
    if found is None or _is_no_text(content_type):
        return "utf_8"
    return _codec(found[1])


def _is_no_text(content_type: str) -> bool:
    return content_type.lstrip().lower().startswith(_NO_TEXT)


def _codec(charset: str) -> str:
    """Return Python's codec of a charset; UTF-8 if it knows none."""
    name = encodings.normalize_encoding(charset).lower()
    name = _OTHER_NAMES.get(name) or encodings.aliases.aliases.get(name, name)
    if name not in _codecs():  # Python's lookup() remembers every name that it is ever asked for
        return "utf_8"
    try:
        b"?".decode(name, errors="replace")
    except LookupError:  # a codec, but not one of text
        return "utf_8"
    return name


@cache
def _codecs() -> frozenset[str]:
    return frozenset(module.name for module in pkgutil.iter_modules(encodings.__path__)) - _NO_CHARSETS
