"""Traffic: which calls go first when an API cannot take all of them."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class Priority(StrEnum):
    """How urgent calls are; none starves another."""

    INTERACTIVE = "interactive"
    NORMAL = "normal"
    BULK = "bulk"

    @property
    def weight(self) -> int:
        """Its part of an API's limit while all priorities want more than there is."""
        return _WEIGHTS[self]


_WEIGHTS = {Priority.INTERACTIVE: 8, Priority.NORMAL: 4, Priority.BULK: 1}


class TrafficClass(Struct, frozen=True):
    """Calls that share one part of an API's limits.

    Attributes:
        priority: How urgent they are.
        tenant: On whose behalf they are made; empty where nobody is named.
    """

    priority: Priority = Priority.NORMAL
    tenant: str = ""

    def __str__(self) -> str:
        return f"{self.priority.value}/{self.tenant}" if self.tenant else self.priority.value


NORMAL = TrafficClass()
