"""Cases: how a server counts, and at which rate it is called."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from callmill.config.limit_spec import Enforcer, LimitSpec, parse_limit
from callmill.simulator import SimulatorOptions
from callmill.simulator.latency import parse_latency
from callmill.simulator.options import EnforcerKind, HeaderStyle

BURST = 20
_LATENCY = parse_latency("20ms")
_DECLARED = {
    EnforcerKind.BUCKET: Enforcer.BUCKET,
    EnforcerKind.NGINX: Enforcer.BUCKET,
    EnforcerKind.SLIDING: Enforcer.SLIDING,
    EnforcerKind.FIXED: Enforcer.FIXED,
}


class Case(Struct, frozen=True):
    """One server and the limit that it enforces.

    Attributes:
        kind: How the server counts.
        rate: Calls a second.
        window_s: The limit is ``rate * window_s`` calls in this time.
    """

    kind: EnforcerKind
    rate: int
    window_s: int = 1

    @property
    def name(self) -> str:
        """Its name for people."""
        return f"{self._counting} {self.rate:,}/s"

    @property
    def api(self) -> str:
        """Its name as an API."""
        return f"{self.kind.value}-{self.window_s}s-{self.rate}"

    @property
    def has_burst(self) -> bool:
        """Whether the server forgives calls that come too early."""
        return self.kind in (EnforcerKind.BUCKET, EnforcerKind.NGINX)

    @property
    def limit(self) -> LimitSpec:
        """The limit."""
        return parse_limit(f"{self.rate * self.window_s}/{'second' if self.window_s == 1 else 'minute'}")

    def server(self) -> SimulatorOptions:
        """Return how the server is started. It tells nothing in headers: the pace alone has to keep the limit."""
        burst = BURST if self.has_burst else None
        return SimulatorOptions(
            limits=(self.limit,), enforcer=self.kind, burst=burst, latency=_LATENCY, headers=HeaderStyle.NONE
        )

    def profile(self) -> dict[str, Any]:
        """Return what the API's profile says of it."""
        told = {"limits": [str(self.limit)], "enforcer": _DECLARED[self.kind].value}
        return {**told, "burst": BURST} if self.has_burst else told

    def bound(self, guard_s: float) -> float:
        """Return the share of the limit that can be used with this timing uncertainty and no refusal."""
        return 1.0 if self.has_burst else self.window_s / (self.window_s + guard_s)

    @property
    def _counting(self) -> str:
        if self.has_burst:
            return f"{self.kind.value}{' burst' if self.kind is EnforcerKind.NGINX else ''} {BURST}"
        return f"{self.kind.value} {self.window_s} s"


def matrix(rate: int) -> list[Case]:
    """Return every way of counting at one rate."""
    return [
        Case(EnforcerKind.BUCKET, rate),
        Case(EnforcerKind.SLIDING, rate),
        Case(EnforcerKind.FIXED, rate),
        Case(EnforcerKind.NGINX, rate),
        Case(EnforcerKind.SLIDING, rate, 60),
    ]
