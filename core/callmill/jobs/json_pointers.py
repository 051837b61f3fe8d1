"""JSON pointers (RFC 6901) into bodies: of a body, only what lies on the way to them is decoded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec
from msgspec import Raw

from callmill.jobs.body_text import without_mark

_Tree: TypeAlias = dict[str, Any]
"""The parts of the pointers: part -> tree of what lies below it; under ``_HERE`` the names of those that end there."""

_HERE = "\0here"

_LONGEST_ODD_BODY = 1 << 20

_object_decoder = msgspec.json.Decoder(dict[str, Raw])
_array_decoder = msgspec.json.Decoder(list[Raw])
_value_decoder = msgspec.json.Decoder()


class JsonPointers:
    """Reads the values at several pointers in one pass over a body.

    Args:
        pointers: The pointers by name, such as ``{"total": "/usage/total_tokens"}``; None for one that is not wanted.
    """

    def __init__(self, pointers: Mapping[str, str | None]) -> None:
        self._tree: _Tree = {}
        for name, pointer in pointers.items():
            if pointer is None:
                continue
            tree = self._tree
            for part in pointer.split("/")[1:]:
                tree = tree.setdefault(part.replace("~1", "/").replace("~0", "~"), {})
            tree.setdefault(_HERE, []).append(name)

    def __bool__(self) -> bool:
        return bool(self._tree)

    def read(self, body: bytes | None) -> dict[str, Any]:
        """Return the values found, by name; what is not there, or is in no JSON, is left out."""
        found: dict[str, Any] = {}
        if body and self._tree:
            try:
                body = without_mark(body)
                _collect(Raw(body), self._tree, found)
            except RecursionError:
                return found
            except ValueError:  # msgspec's errors and those of UTF-8 are
                return _read_odd(body, self._tree)
        return found


def _collect(raw: Raw, tree: _Tree, found: dict[str, Any]) -> None:
    for name in tree.get(_HERE, ()):
        found[name] = _value_decoder.decode(raw)
    parts = tree.keys() - {_HERE}
    if not parts:
        return
    first = bytes(raw).lstrip()[:1]
    if first == b"{":
        members = _object_decoder.decode(raw)
        for part in parts & members.keys():
            _collect(members[part], tree[part], found)
    elif first == b"[":
        items = _array_decoder.decode(raw)
        for part in parts:
            if _is_index(part) and int(part) < len(items):
                _collect(items[int(part)], tree[part], found)


def _read_odd(body: bytes, tree: _Tree) -> dict[str, Any]:
    """Read what only Python's slower parser takes, such as NaN, or half a surrogate pair anywhere in the body."""
    found: dict[str, Any] = {}
    if len(body) <= _LONGEST_ODD_BODY:
        try:
            _collect_parsed(json.loads(body), tree, found)
        except (ValueError, RecursionError):
            return {}
    return found


def _collect_parsed(value: Any, tree: _Tree, found: dict[str, Any]) -> None:
    for name in tree.get(_HERE, ()):  # half a surrogate pair could be sent nowhere
        found[name] = value.encode(errors="replace").decode() if isinstance(value, str) else value
    for part in tree.keys() - {_HERE}:
        if isinstance(value, dict) and part in value:
            _collect_parsed(value[part], tree[part], found)
        elif isinstance(value, list) and _is_index(part) and int(part) < len(value):
            _collect_parsed(value[int(part)], tree[part], found)


def _is_index(part: str) -> bool:
    return part.isdecimal() and part.isascii()
