"""The names of the breaker's keys in Redis; nothing else builds them."""

from __future__ import annotations


class Keys:
    """The keys of one API. The braces keep them on one node wherever slots are hashed."""

    def __init__(self, api: str) -> None:
        prefix = f"callmill:breaker:{{{api}}}"
        self.state = f"{prefix}:state"
        """HASH: state, epoch, reason, times and the prober; gone once nobody asked for an hour."""
        self.counts = f"{prefix}:counts"
        """HASH: a letter and the number of a bucket of time -> calls in it."""
