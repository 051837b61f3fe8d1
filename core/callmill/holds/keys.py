"""The names of the Redis keys for credentials and hosts; nothing else builds them."""

from __future__ import annotations

SALT = "salt"
RESUMED = "resumed:"
FINGERPRINT = "fp:"
HELD = "held:"


class Keys:
    """The keys of one API. The braces keep them on one node wherever slots are hashed."""

    def __init__(self, api: str) -> None:
        self._prefix = f"callmill:holds:{{{api}}}"
        self.shared = f"{self._prefix}:shared"
        """HASH: ``salt``; of each subject ``fp:`` its fingerprint when a worker last started, ``held:`` its hold,
        if any, and ``resumed:`` how often it was released by hand."""

    def state(self, subject: str, fingerprint: str) -> str:
        """HASH: what is known of a subject with this fingerprint; expires 30 days after its last use."""
        return f"{self._prefix}:{subject}:{fingerprint}"
