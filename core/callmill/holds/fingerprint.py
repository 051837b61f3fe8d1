"""Fingerprints of secrets: they distinguish two secrets and reveal neither."""

from __future__ import annotations

from hashlib import pbkdf2_hmac

_ROUNDS = 20_000
_BYTES = 4
"""Far too few to find a secret; a changed one gets the same fingerprint once in four billion times."""


def fingerprint(salt: bytes, *parts: str) -> str:
    """Return a fingerprint of texts, some of which may be secret; takes about 10 ms of CPU."""
    text = "\0".join(f"{len(part)}:{part}" for part in parts)
    return pbkdf2_hmac("sha256", text.encode(), salt, _ROUNDS, _BYTES).hex()
