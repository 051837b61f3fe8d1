"""PublicApi: what a producer may know of an API. Neither pydantic nor any secret is needed to use it."""

from __future__ import annotations

import re
from hashlib import sha256
from urllib.parse import SplitResult, unquote, urlsplit

from msgspec import Struct

API_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
"""What an API may be called: the name is a part of keys and queues."""

_AMBIGUOUS = re.compile(r"[\x00-\x20\x7f\\]")
_PATH_END = re.compile(r"[?#]")
_DEFAULT_PORTS = {"http": 80, "https": 443}


class ApiAddress(Struct, frozen=True):
    """Which of several APIs of one name is meant.

    Attributes:
        identity: ``PublicApi.identity``; empty: unknown.
        address: Its base URL, and its account where it has one, for people.
    """

    identity: str
    address: str

    def __str__(self) -> str:
        return f"{self.identity} {self.address}"

    @classmethod
    def parse(cls, text: str) -> ApiAddress | None:
        """Parse the text; None if it names no particular API."""
        identity, _, address = text.partition(" ")
        return cls(identity, address) if address else None


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
        account: Distinguishes it from another API of the same name at the same URL; None: there is none.
        limited_as: Name of its limiter's state in Redis, if another API already uses its name there; empty: its name.
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
    account: str | None = None
    limited_as: str = ""

    @property
    def identity(self) -> str:
        """Ten hexadecimal digits that distinguish this API from others of its name; from its base URL and account.

        Limits and credentials are not part of it: they may change without making it another API.
        """
        return sha256(f"{_canonical(self.base_url)}\n{self.account or ''}".encode()).hexdigest()[:10]

    @property
    def address(self) -> str:
        """Its base URL, and its account where it has one, for people."""
        return self.base_url if self.account is None else f"{self.base_url} (account {self.account})"

    @property
    def at(self) -> ApiAddress:
        """What distinguishes it from other APIs of its name."""
        return ApiAddress(self.identity, self.address)

    @property
    def limiter(self) -> str:
        """Name of its limiter's and breaker's state in Redis."""
        return self.limited_as or self.name

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
    if ambiguous := _AMBIGUOUS.search(url):
        raise ValueError(f"{url!r} contains {_named(ambiguous[0])}: percent-encode it, as %{ord(ambiguous[0]):02X}")
    if "://" not in absolute:
        raise ValueError(f"{url!r} is neither a path that starts with '/' nor an absolute URL")
    raise ValueError(f"{url!r} is not under {base_url}; dot segments and credentials are not allowed either")


def _named(character: str) -> str:
    return {" ": "a space", "\\": "a backslash"}.get(character, f"the control character U+{ord(character):04X}")


def _canonical(base_url: str) -> str:
    parts = urlsplit(base_url)
    scheme, host, port = _origin(parts)
    return f"{scheme}://{host}:{port}{parts.path.rstrip('/')}"


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    scheme = parts.scheme
    return scheme, parts.hostname, parts.port or _DEFAULT_PORTS.get(scheme)


def _has_dot_segments(path: str) -> bool:
    # Servers differ in how often they decode: look through every layer.
    while "%" in path and (decoded := unquote(path, errors="replace")) != path:
        path = decoded
    return any(segment in {".", ".."} for segment in path.replace("\\", "/").split("/"))
