"""The names of the limiter's keys in Redis; nothing else builds them."""

from __future__ import annotations


class Keys:
    """The keys of one API. The braces keep them on one node wherever slots are hashed."""

    def __init__(self, name: str) -> None:
        prefix = f"callmill:limit:{{{name}}}"
        self.meta = f"{prefix}:meta"
        self.active = f"{prefix}:active"
        self.queue = f"{prefix}:queue"
        self.channel = f"{prefix}:events"
        self.control = f"{prefix}:control"
        self.history = f"{prefix}:history"
        self.permits = [f"{prefix}:permits:{part}" for part in ("expiry", "held", "want", "waiting", "meta")]
        self._limit = f"{prefix}:limit"

    def limit(self, unit: str, window_s: int) -> str:
        """The hash of the limit that counts ``unit`` over ``window_s`` seconds."""
        return f"{self._limit}:{unit}:{window_s}"
