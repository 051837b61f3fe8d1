"""Texts for messages and logs, without the secrets in them.

Two nets. What this process has read as a secret is told to ``hide`` and replaced wherever it turns up, also written as
JSON, Python or a URL would have it. What only looks like one (passwords and keys in URLs, headers that carry
credentials) is replaced as well, for libraries log things that nobody told us of.
"""

from __future__ import annotations

import json
import re
import threading
from functools import cache
from urllib.parse import quote, urlsplit

HIDDEN = "***"

_SHORTEST = 4
"""A shorter secret would blot out words and numbers that have nothing to do with it."""

_SECRET_NAME = r"[\w.-]*(?:api[_-]?key|access[_-]?key|token|secret|passw(?:or)?d|signature)[\w.-]*|key|sig"  # noqa: S105 - a pattern
_SECRET_HEADER = r"(?:proxy-)?authorization|(?:set-)?cookie|x-api-key|api-key|x-auth-token"  # noqa: S105 - a pattern
_PATTERNS: tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...] = (
    # A pattern is looked for only where one of the texts before it, in small letters, occurs: that is much cheaper.
    (
        ("://",),
        re.compile(r"\b([a-z][a-z0-9+.-]*://)(?:([^\s/?#@:'\"]*):)?[^\s/?#'\"]+@", re.IGNORECASE),
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

_lock = threading.Lock()
_hidden: set[str] = set()


def redacted(url: str) -> str:
    """Return the URL with its password (and a query, which may carry one) replaced by ``***``.

    A text that is no URL becomes ``***`` as a whole, for nobody knows where its secret sits.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return HIDDEN
    if not parts.scheme or not parts.netloc:
        return HIDDEN
    userinfo, at, host = parts.netloc.rpartition("@")
    user, colon, _ = userinfo.partition(":")
    netloc = f"{user}:{HIDDEN}@{host}" if colon else f"{userinfo}{at}{host}"
    query = f"?{HIDDEN}" if parts.query else ""
    return f"{parts.scheme}://{netloc}{parts.path}{query}"


def hide(secret: str) -> None:
    """From now on, keep a secret out of every text that goes through ``without_secrets``."""
    forms = {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], quote(secret, safe="")}
    with _lock:
        _hidden.update(form for form in forms if len(form) >= _SHORTEST)
        _known.cache_clear()


def without_secrets(text: str) -> str:
    """Return the text with every secret in it replaced by ``***``."""
    known = _known()
    if known is not None:
        text = known.sub(HIDDEN, text)
    lowered = text.lower()
    for signs, pattern, replacement in _PATTERNS:
        if any(sign in lowered for sign in signs):
            text = pattern.sub(replacement, text)
    return text


@cache
def _known() -> re.Pattern[str] | None:
    # The longest first, so that no end of one stays because a shorter one was found in it.
    return re.compile("|".join(map(re.escape, sorted(_hidden, key=len, reverse=True)))) if _hidden else None
