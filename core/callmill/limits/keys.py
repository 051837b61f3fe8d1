"""The names of the limiter's keys in Redis; nothing else builds them."""

from __future__ import annotations

from typing import NamedTuple

from callmill.config.limit_spec import AUTO, LimitSpec, Scope

OWNERS = "callmill:limit:owners"
"""HASH: API name -> identity of the API whose state has the plain name."""


def limit_kind(spec: LimitSpec) -> str:
    """What the key of a limit says that it counts."""
    if spec.amount:
        return spec.unit.value.replace(" ", "-")
    return "auto" if spec == AUTO else "learned"


class PermitKeys(NamedTuple):
    """The keys of the permits for calls at once."""

    expiry: str
    held: str
    want: str
    waiting: str
    used: str
    meta: str


class Keys:
    """The keys of one API. The braces keep them on one node wherever slots are hashed."""

    def __init__(self, name: str) -> None:
        self._prefix = f"callmill:limit:{{{name}}}"
        self.meta = f"{self._prefix}:meta"
        self.classes = f"{self._prefix}:classes"
        self.paused = f"{self._prefix}:paused"
        self.channel = f"{self._prefix}:events"
        self.costs = f"{self._prefix}:costs"
        self.control = f"{self._prefix}:control"
        self.history = f"{self._prefix}:history"

    def workers(self, traffic: str) -> str:
        """The workers seen lately with calls of this class of traffic."""
        return f"{self._prefix}:workers:{traffic}"

    def queue(self, traffic: str) -> str:
        """The workers that wait with calls of this class of traffic."""
        return f"{self._prefix}:queue:{traffic}"

    def limit(self, spec: LimitSpec, owner: str = "") -> str:
        """The hash of a limit; ``owner``: the key or model that it holds for."""
        kind = limit_kind(spec)
        if spec.scope is Scope.API:
            return f"{self._prefix}:limit:{kind}:{spec.window_s}"
        return f"{self._prefix}:limit:{spec.scope.value}:{owner}:{kind}:{spec.window_s}"

    def permits(self, scope: str = "") -> PermitKeys:
        """The keys of the concurrency permits of the API, or of one of its keys or models."""
        prefix = f"{self._prefix}:permits" + (f":{scope}" if scope else "")
        return PermitKeys(*(f"{prefix}:{part}" for part in PermitKeys._fields))
