"""PublicApi: what a producer may know of an API. Neither pydantic nor any secret is needed to use it."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, unquote, urlsplit

from msgspec import Struct

_AMBIGUOUS = re.compile(r"[\x00-\x20\x7f\\]")
_PATH_END = re.compile(r"[?#]")
_DEFAULT_PORTS = {"http": 80, "https": 443}


class PublicApi(Struct, frozen=True, kw_only=True):
    """The public facts of an API profile, published by the workers that serve it.

    Attributes:
        name: Name of the API.
        base_url: Its base URL, without a trailing slash.
        limits: Its limits as texts that ``parse_limit`` reads.
        enforcer: How its server counts.
        burst: Calls that a bucket server takes at once.
        quantum: Seconds of the parts in which the server counts longer windows.
        usage: JSON pointer to the real cost in an answer.
        model: JSON pointer to the model in a request's body.
        models: Limits of single models, besides those of the API.
        timeout: Seconds for a whole call, unless the job says otherwise.
    """

    name: str
    base_url: str
    limits: tuple[str, ...] = ()
    enforcer: str = "unknown"
    burst: int = 1
    quantum: float | None = None
    usage: str | None = None
    model: str | None = None
    models: dict[str, tuple[str, ...]] = {}
    timeout: float = 60.0

    def covers(self, url: str) -> bool:
        """Say whether an absolute URL lies under the base URL."""
        return covers(self.base_url, url)

    def resolve(self, url: str) -> str:
        """Return the absolute URL of a job's ``url``.

        Raises:
            ValueError: It is neither a path nor covered by this API.
        """
        return resolve(self.base_url, url)


def covers(base_url: str, url: str) -> bool:
    """Say whether an absolute URL lies under ``base_url``: same scheme, host, port, and path up to a segment boundary.

    A URL that two parsers may read differently (control characters, backslashes, credentials, dot segments in any
    encoding) is covered by nothing.
    """
    if _AMBIGUOUS.search(url):
        return False
    try:
        base, target = urlsplit(base_url), urlsplit(url)
        same_origin = _origin(base) == _origin(target)
    except ValueError:
        return False
    if not same_origin or "@" in target.netloc or _has_dot_segments(target.path):
        return False
    prefix = base.path.rstrip("/")
    return target.path == prefix or target.path.startswith(f"{prefix}/")


_SEGMENT = r"[\w\-~=&:,+@!$'()*;]"
_PLAIN_PATH = re.compile(rf"(?:/{_SEGMENT}(?:\.|{_SEGMENT})*)*/?(?:\?[!-\[\]-~]*)?", re.ASCII)
"""Nothing in it that two parsers may read differently: the form of nearly every path, told at one look."""


def resolve(base_url: str, url: str) -> str:
    """Return the absolute URL of ``url``: a path under ``base_url``, or an absolute URL that it covers.

    Raises:
        ValueError: It is neither; the message says why.
    """
    if url.startswith("/"):
        if _PLAIN_PATH.fullmatch(url):
            return base_url.rstrip("/") + url
        absolute = base_url.rstrip("/") + url
        # The origin is the base URL's by construction; every job comes through here, so parse no more than needed.
        if not _AMBIGUOUS.search(url) and not _has_dot_segments(_PATH_END.split(url, maxsplit=1)[0]):
            return absolute
    elif covers(base_url, absolute := url):
        return absolute
    if "://" not in absolute:
        raise ValueError(f"{url!r} is neither a path that starts with '/' nor an absolute URL")
    raise ValueError(f"{url!r} is not under {base_url}; dot segments, credentials and white space are refused as well")


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    scheme = parts.scheme
    return scheme, parts.hostname, parts.port or _DEFAULT_PORTS.get(scheme)


def _has_dot_segments(path: str) -> bool:
    # Servers differ in how often they decode: look through every layer.
    while "%" in path and (decoded := unquote(path, errors="replace")) != path:
        path = decoded
    return any(segment in {".", ".."} for segment in path.replace("\\", "/").split("/"))
