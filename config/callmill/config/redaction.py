"""Texts for messages and logs, without the secrets in them.

Two nets. Secrets that this process has read are passed to ``hide`` and replaced wherever they occur, in any encoding.
What only looks like one (passwords and keys in URLs, headers that carry credentials) is replaced as well, because
libraries log things that nobody told us of.
"""

from __future__ import annotations

import re
import threading

from callmill.config.secret_mask import HIDDEN, SecretMask

_SHORTEST = 4
"""A shorter secret would blot out words and numbers that have nothing to do with it."""
_LONGEST = 8192
"""No secret is longer, in whatever encoding."""

_SECRET_NAME = r"[\w.-]{0,64}(?:api[_-]?key|access[_-]?key|token|secret|passw(?:or)?d|signature)[\w.-]{0,64}|key|sig"  # noqa: S105 - a pattern
_SECRET_HEADER = r"(?:proxy-)?authorization|(?:set-)?cookie|x-api-key|api-key|x-auth-token"  # noqa: S105 - a pattern
_PATTERNS: tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...] = (
    # A pattern is looked for only where one of the texts before it, in small letters, occurs: that is much cheaper.
    # Repetitions before a required text are bounded: users and APIs choose what is searched, and its length.
    (
        ("://",),
        re.compile(r"\b([a-z][a-z0-9+.-]{0,30}://)(?:([^\s/?#@:'\"]*):)?[^\s/?#'\"]+@", re.IGNORECASE),
        rf"\1\2:{HIDDEN}@",
    ),
    (
        ("?", "&", ";"),
        re.compile(rf"([?&;](?:{_SECRET_NAME})=)[^\s&;'\"<>]+", re.IGNORECASE),
        rf"\1{HIDDEN}",
    ),
    (
        ("authorization", "cookie", "api-key", "auth-token"),
        re.compile(
            rf"(\b(?:{_SECRET_HEADER})\b\\?['\"]?\s*[:=,]\s*(?:b?\\?['\"])?)[^\s'\"\\][^'\"\\\r\n]*", re.IGNORECASE
        ),
        rf"\1{HIDDEN}",
    ),
    (
        ("password",),
        re.compile(r"(\bpassword\\?['\"]?\s*[:=]\s*(?:b?\\?['\"])?)[^\s'\"\\,;)&]+", re.IGNORECASE),
        rf"\1{HIDDEN}",
    ),
    (
        ("bearer", "basic"),
        re.compile(r"\b(Bearer|Basic)\s+(?=[\w.~+/-]*[\d=])[\w.~+/-]{8,}=*", re.IGNORECASE),
        rf"\1 {HIDDEN}",
    ),
)

# Not urlsplit: newer Pythons refuse several hosts if one is an IPv6 address, as in a list of Sentinels.
_URL = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<netloc>(?:[^/?#\[\]]|\[[^/?#\[\]]*\])+)(?P<path>[^?#]*)(?:\?(?P<query>[^#]*))?(?:#.*)?",
    re.IGNORECASE | re.DOTALL,
)

_lock = threading.Lock()
_hidden: set[str] = set()
_known = SecretMask(())


def redacted(url: str) -> str:
    """Return the URL with its password (and a query, which may carry one) replaced by ``***``.

    A text that is no URL becomes ``***`` as a whole, for nobody knows where its secret sits.
    """
    parts = _URL.fullmatch(url)
    if parts is None:
        return HIDDEN
    userinfo, at, host = parts["netloc"].rpartition("@")
    user, colon, _ = userinfo.partition(":")
    netloc = f"{user}:{HIDDEN}@{host}" if colon else f"{userinfo}{at}{host}"
    query = f"?{HIDDEN}" if parts["query"] else ""
    return f"{parts['scheme'].lower()}://{netloc}{parts['path']}{query}"


def hide(secret: str) -> None:
    """From now on, keep a secret out of every text that goes through ``without_secrets``."""
    global _known  # noqa: PLW0603 - a mask never changes, so readers need no lock
    with _lock:
        if len(secret) >= _SHORTEST and secret not in _hidden:
            _hidden.add(secret)
            _known = SecretMask(_hidden)


def short_without_secrets(text: str, most: int) -> str:
    """Return a text as ``without_secrets`` does, cut to about ``most`` characters before the search.

    A secret that the cut divides would not be found, so as much as the longest one has is left out behind it.
    """
    if len(text) <= most:
        return without_secrets(text)
    cleaned = without_secrets(text[: most + _LONGEST])
    return f"{cleaned[: max(0, min(most, len(cleaned) - _LONGEST))]}… ({len(text):,} characters)"


def without_secrets(text: str) -> str:
    """Return the text with every secret in it replaced by ``***``."""
    text = _known.text(text)
    lowered = text.lower()
    for signs, pattern, replacement in _PATTERNS:
        if any(sign in lowered for sign in signs):
            text = pattern.sub(replacement, text)
    return text
