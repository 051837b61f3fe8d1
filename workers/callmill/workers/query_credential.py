"""QueryCredential: a credential that is sent as query parameters."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote, unquote_plus


class QueryCredential:
    """Adds one credential's parameters to URLs, replacing those of the same name.

    A URL from an API, such as a redirect's target or the link to the next page, may already contain the key, possibly
    masked.

    Args:
        parameters: Names and values, not encoded.
    """

    def __init__(self, parameters: Mapping[str, str]) -> None:
        self._names = frozenset(parameters)
        self._encoded = "&".join(
            f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in parameters.items()
        )

    def add_to(self, url: str) -> str:
        """Return the URL with the parameters added; its own stay as written."""
        url = self.remove_from(url).partition("#")[0]
        return f"{url}{_joint(url)}{self._encoded}"

    def remove_from(self, url: str) -> str:
        """Return the URL without these parameters."""
        if "?" not in url:
            return url
        start, _, rest = url.partition("?")
        query, hash_, fragment = rest.partition("#")
        pairs = query.split("&")
        kept = [pair for pair in pairs if unquote_plus(pair.partition("=")[0]) not in self._names]
        if len(kept) == len(pairs):
            return url
        return f"{start}{'?' if kept else ''}{'&'.join(kept)}{hash_}{fragment}"


def _joint(url: str) -> str:
    if "?" not in url:
        return "?"
    return "" if url.endswith(("?", "&")) else "&"
