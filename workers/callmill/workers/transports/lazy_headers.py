"""LazyHeaders: the headers of an answer, converted when somebody first looks at them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pyreqwest.http import HeaderMap


class LazyHeaders(Mapping[str, str]):
    """Names in lower case, repeated ones joined.

    A header with a value outside ASCII is left out: pyreqwest cannot hand it over.
    """

    __slots__ = ("_converted", "_raw")

    def __init__(self, raw: HeaderMap) -> None:
        self._raw = raw
        self._converted: dict[str, str] | None = None

    def __getitem__(self, name: str) -> str:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __repr__(self) -> str:
        return repr(self._all())

    def _all(self) -> dict[str, str]:
        if self._converted is None:
            self._converted = _convert(self._raw)
        return self._converted


def _convert(raw: HeaderMap) -> dict[str, str]:
    converted: dict[str, str] = {}
    for name in dict.fromkeys(raw.keys()):
        try:
            converted[name.lower()] = ", ".join(raw.getall(name))
        except ValueError:
            continue
    return converted
