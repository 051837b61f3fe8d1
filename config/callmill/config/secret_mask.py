"""SecretMask: finds secrets in texts and bodies, in any encoding, and replaces them with ``***``.

A server that echoes a request encodes a credential in its own way: percent-encoded, escaped as JSON or HTML allows, or
several of these where texts are nested. Letters and digits survive all of them, so the longest run of these in a secret
is searched for first. Only where it occurs are the encodings of the whole secret compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from html.entities import codepoint2name

HIDDEN = "***"

_UNENCODED_RUN = re.compile(r"[A-Za-z0-9]+")
_BACKSLASH = r"(?:\\{8}|\\{4}|\\{2}|\\)"
"""Each layer of JSON doubles it; one more belongs to what follows."""
_SHORTEST, _SHORTEST_PLAIN = 8, 16


def is_unmistakable(secret: str) -> bool:
    """Say whether a secret can be replaced in any answer, because it cannot be an ordinary word or number.

    It has at least 8 characters, or at least 16 if it consists only of letters or only of digits.
    """
    return len(secret) >= (_SHORTEST_PLAIN if secret.isalpha() or secret.isdecimal() else _SHORTEST)


class SecretMask:
    """Replaces secrets.

    Args:
        secrets: The secrets; empty ones are left out.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        # The longest first, so that no part of one remains because a shorter one was found in it.
        self._secrets = sorted({secret for secret in secrets if secret}, key=len, reverse=True)
        self._signs = tuple(dict.fromkeys(map(_sign, self._secrets)))
        self._signs_in_bytes = tuple(sign.encode() for sign in self._signs)

    def text(self, text: str) -> str:
        """Return the text without the secrets."""
        for sign in self._signs:
            if sign in text:
                return self._in_text.sub(HIDDEN, text)
        return text

    def body(self, body: bytes) -> bytes:
        """Return the bytes without the secrets, which are searched for as ASCII and UTF-8."""
        for sign in self._signs_in_bytes:
            if body.find(sign) >= 0:  # ``in`` first checks for a number, which takes longer than the search
                return self._in_bytes.sub(HIDDEN.encode(), body)
        return body

    @cached_property
    def _in_text(self) -> re.Pattern[str]:
        return re.compile("|".join(map(_spellings, self._secrets)))

    @cached_property
    def _in_bytes(self) -> re.Pattern[bytes]:
        return re.compile("|".join(map(_spellings, self._secrets)).encode())


def _sign(secret: str) -> str:
    """Return a text that occurs wherever the secret does; the longer it is, the faster the search."""
    return max(_UNENCODED_RUN.findall(secret), key=len, default="")


def _spellings(secret: str) -> str:
    return "".join(map(_spelling, secret))


def _spelling(character: str) -> str:
    if character.isascii() and character.isalnum():
        return character
    encoded = "".join(f"%(?:25)*(?i:{byte:02x})" for byte in character.encode())
    units = character.encode("utf-16-be").hex()
    escaped = "".join(rf"\\{{1,8}}u(?i:{units[at : at + 4]})" for at in range(0, len(units), 4))
    number = ord(character)
    names = [name for name in (codepoint2name.get(number), {"'": "apos"}.get(character)) if name]
    entity = "|".join([f"#0*{number}", f"#[xX]0*(?i:{number:x})", *names])
    itself = _BACKSLASH if character == "\\" else rf"\\{{0,8}}{re.escape(character)}"
    ways = [itself, encoded, escaped, f"&(?:amp;)*(?:{entity});"]
    if character == " ":
        ways.append(r"\+")
    return f"(?:{'|'.join(ways)})"
