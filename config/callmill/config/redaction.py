"""URLs for messages and logs: without their passwords."""

from __future__ import annotations

from urllib.parse import urlsplit


def redacted(url: str) -> str:
    """Return the URL with its password (and a query, which may carry one) replaced by ``***``.

    A text that is no URL becomes ``***`` as a whole, for nobody knows where its secret sits.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return "***"
    if not parts.scheme or not parts.netloc:
        return "***"
    userinfo, at, host = parts.netloc.rpartition("@")
    user, colon, _ = userinfo.partition(":")
    netloc = f"{user}:***@{host}" if colon else f"{userinfo}{at}{host}"
    query = "?***" if parts.query else ""
    return f"{parts.scheme}://{netloc}{parts.path}{query}"
