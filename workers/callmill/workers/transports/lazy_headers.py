"""LazyHeaders: the headers of an answer, converted when somebody first looks at them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, KeysView, Mapping
from typing import Any

from pyreqwest.http import HeaderMap
from pyreqwest.response import BaseResponse


class LazyHeaders(Mapping[str, str]):
    """Names in lower case, repeated ones joined.

    A header with a value outside ASCII is left out: pyreqwest cannot hand it over.
    """

    __slots__ = ("_converted", "_raw")

    def __init__(self, raw: BaseResponse) -> None:
        self._raw = raw
        self._converted: dict[str, str] | None = None

    def __getitem__(self, name: str) -> str:
        value: str | None = self.get(name)
        if value is None:
            raise KeyError(name)
        return value

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def get(self, name: str, default: Any = None) -> Any:
        """Return one header without converting the others, which costs ten times as much."""
        if self._converted is not None:
            return self._converted.get(name, default)
        try:
            # Most often there is none; asking for all makes a list. Whatever the case of a name, pyreqwest finds it.
            if self._raw.get_header(name) is None or name != name.lower():
                return default
            values = self._raw.get_header_all(name)
        except ValueError:
            return default
        return ", ".join(values) if values else default

    def keys(self) -> KeysView[str]:
        """Return the names; which of a set are there (``&``) is told without converting any header."""
        return _Names(self)

    def among(self, names: set[str] | frozenset[str]) -> set[str]:
        """Return those of the names that are there."""
        there = names.intersection(self._raw.headers if self._converted is None else self._converted)
        return {name for name in there if self.get(name) is not None}

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __repr__(self) -> str:
        return repr(self._all())

    def _all(self) -> dict[str, str]:
        if self._converted is None:
            self._converted = _convert(self._raw.headers)
        return self._converted


class _Names(KeysView[str]):
    def __init__(self, headers: LazyHeaders) -> None:
        super().__init__(headers)
        self._headers = headers

    def __and__(self, other: Iterable[Any]) -> set[str]:
        return self._headers.among(other if isinstance(other, set | frozenset) else set(other))


def _convert(raw: HeaderMap) -> dict[str, str]:
    converted: dict[str, str] = {}
    for name in dict.fromkeys(raw.keys()):
        try:
            converted[name.lower()] = ", ".join(raw.getall(name))
        except ValueError:
            continue
    return converted
