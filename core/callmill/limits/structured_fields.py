"""Structured fields (RFC 9651): lists of items and dictionaries of items, as the RateLimit drafts use them.

Inner lists are not read. A field that is not of the grammar is None as a whole, as the RFC asks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeAlias

from msgspec import Struct

_LONGEST = 4096
_INTEGER = re.compile(r"-?[0-9]{1,15}")
_KEY = r"[a-z*][a-z0-9_.*-]*"
_VALUE = (
    r'"(?:[ !#-\[\]-~]|\\["\\])*"'  # string
    r"|-?[0-9]{1,15}(?:\.[0-9]{1,3})?"  # integer, decimal
    r"|[A-Za-z*][A-Za-z0-9!#$%&'*+.^_`|~:/-]*"  # token
    r"|:[A-Za-z0-9+/=]*:"  # byte sequence
    r"|\?[01]"  # boolean
    r"|@-?[0-9]{1,15}"  # date
)
_ITEM = re.compile(_VALUE)
_PARAMETER = re.compile(rf";[ ]*({_KEY})(?:=({_VALUE}))?")
_MEMBER_KEY = re.compile(rf"({_KEY})=")
_COMMA = re.compile(r"[ \t]*,[ \t]*")

Bare: TypeAlias = int | str
"""An integer; or a text: of a string its content, of everything else what is written."""


class Item(Struct, frozen=True):
    """A value and its parameters; a parameter without a value is ``?1``, true."""

    value: Bare
    parameters: Mapping[str, Bare]

    def integer(self, name: str) -> int | None:
        """Return a parameter that is an integer and not negative."""
        value = self.parameters.get(name)
        return value if isinstance(value, int) and value >= 0 else None


def read_list(text: str) -> list[Item] | None:
    """Return the items of a list; None when it is none."""
    read = _members(text, keyed=False)
    return None if read is None else [item for _, item in read]


def read_dictionary(text: str) -> dict[str, Item] | None:
    """Return the items of a dictionary by key, of equal keys the last; None when it is none."""
    read = _members(text, keyed=True)
    return None if read is None else dict(read)


def _members(text: str, *, keyed: bool) -> list[tuple[str, Item]] | None:
    if len(text) > _LONGEST or not (text := text.strip(" ")):
        return None
    members: list[tuple[str, Item]] = []
    at = 0
    while True:
        key = ""
        if keyed:
            named = _MEMBER_KEY.match(text, at)
            if named is None:
                return None
            key, at = named[1], named.end()
        value = _ITEM.match(text, at)
        if value is None:
            return None
        parameters, at = _parameters(text, value.end())
        members.append((key, Item(_bare(value[0]), parameters)))
        if at == len(text):
            return members
        comma = _COMMA.match(text, at)
        if comma is None:
            return None
        at = comma.end()


def _parameters(text: str, at: int) -> tuple[dict[str, Bare], int]:
    parameters: dict[str, Bare] = {}
    while (match := _PARAMETER.match(text, at)) is not None:
        parameters[match[1]] = "?1" if match[2] is None else _bare(match[2])
        at = match.end()
    return parameters, at


def _bare(written: str) -> Bare:
    if written[0] == '"':
        return re.sub(r"\\(.)", r"\1", written[1:-1])
    return int(written) if _INTEGER.fullmatch(written) else written
