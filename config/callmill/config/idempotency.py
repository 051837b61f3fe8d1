"""Which calls an API executes once even if they arrive twice."""

from __future__ import annotations

from enum import StrEnum

IDEMPOTENT_METHODS = frozenset(
    {"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "PROPFIND", "QUERY", "REPORT", "SEARCH"}
)
"""RFC 9110, section 9.2.2, and the read-only methods of the IANA registry."""


class Idempotency(StrEnum):
    """Which calls may be repeated when it is unknown whether the API executed them."""

    BY_METHOD = "by-method"
    """Those whose method is idempotent."""
    BY_KEY = "by-key"
    """All: the API honours the idempotency key that the others carry."""
    ALWAYS = "always"
    """All: a call that is executed twice does no harm."""

    def covers(self, method: str) -> bool:
        """Say whether calls with this method may be repeated."""
        return self is not Idempotency.BY_METHOD or method in IDEMPOTENT_METHODS
