"""What a simulator counted since it started or was reset."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from msgspec import Struct

from callmill.config.limit_spec import LimitSpec, Unit
from callmill.simulator.fates import Fate, FateKind
from callmill.simulator.key_counts import KeyCounts
from callmill.simulator.tokens import Tokens
from callmill.simulator.window_peak import WindowPeak

_NS_PER_S = 1_000_000_000
_BUCKETS_PER_E = 50
"""Buckets of the latency histogram per factor e: quantiles are right within 1 %."""


class LimitReport(Struct, frozen=True):
    """One limit: its text, the refusals that it caused, and the largest sum of accepted calls in any window."""

    limit: str
    rejected: int
    largest_in_any_window: int


class LatencyReport(Struct, frozen=True):
    """Latencies given to accepted calls that were to be answered, in seconds."""

    count: int
    mean_s: float
    p50_s: float
    p99_s: float
    max_s: float


class IdempotencyReport(Struct, frozen=True):
    """Requests by ``Idempotency-Key``, refused ones too.

    Attributes:
        keys: Distinct keys.
        repeated_keys: Keys that came more than once.
        calls_after_2xx: Requests whose key had been given a 2xx answer before.
        keys_after_2xx: The first 100 of their keys.
        forgotten: Keys dropped to bound memory; above 0 the other figures are lower bounds.
    """

    keys: int
    repeated_keys: int
    calls_after_2xx: int
    keys_after_2xx: list[str]
    forgotten: int


class Report(Struct, frozen=True):
    """What ``GET /stats`` answers. Times are Unix times in seconds; None before the first call."""

    accepted: int
    rejected: int
    tokens: int
    errors: dict[str, int]
    abandoned: int
    in_flight: int
    max_in_flight: int
    limits: list[LimitReport]
    first_arrival: float | None
    last_arrival: float | None
    rate_per_s: float | None
    latency_given: LatencyReport
    idempotency: IdempotencyReport
    enforcer: str
    seed: int


class RunStats:
    """The counts of one run: constant work per call, memory bounded by the calls of the longest window."""

    def __init__(self, limits: Sequence[LimitSpec]) -> None:
        self.accepted = 0
        self.rejected = 0
        self.tokens = 0
        self.abandoned = 0
        self.in_flight = 0
        self.max_in_flight = 0
        self.errors: Counter[str] = Counter()
        self.keys = KeyCounts()
        self.latencies = LatencyHistogram()
        self._limits = tuple(limits)
        self._rejected_by_limit = [0] * len(limits)
        self._peaks = [WindowPeak(limit.window_s * _NS_PER_S) for limit in limits]
        self._first_ns: int | None = None
        self._last_ns: int | None = None
        self._accepted_ns: tuple[int, int] | None = None

    def arrived(self, now_ns: int, key: str | None) -> None:
        """Count an arrival; either ``accept`` or ``reject`` follows."""
        if self._first_ns is None:
            self._first_ns = now_ns
        self._last_ns = now_ns
        if key is not None:
            self.keys.arrived(key)

    def reject(self, broken: Sequence[int]) -> None:
        """Count a refusal and the limits at fault."""
        self.rejected += 1
        for position in broken:
            self._rejected_by_limit[position] += 1

    def accept(self, now_ns: int, fate: Fate) -> None:
        """Count an accepted call, in flight from now on."""
        self.accepted += 1
        self._accepted_ns = (self._accepted_ns[0] if self._accepted_ns else now_ns, now_ns)
        for limit, peak in zip(self._limits, self._peaks, strict=True):
            if limit.window_s and not limit.unit.is_tokens:
                peak.add(now_ns, 1)
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        if fate.kind is not FateKind.HANG:
            self.latencies.add(fate.latency_s)
        if fate.kind is FateKind.ERROR:
            self.errors[str(fate.status)] += 1
        elif fate.kind is not FateKind.ANSWER:
            self.errors[fate.kind.value] += 1

    def charge(self, now_ns: int, tokens: Tokens) -> None:
        """Count what an accepted call costs in tokens, when its limits are charged."""
        self.tokens += tokens.total
        for limit, peak in zip(self._limits, self._peaks, strict=True):
            if limit.unit.is_tokens:
                peak.add(now_ns, tokens.counted(limit.unit))

    def ended(self, *, delivered: bool, succeeded_key: str | None) -> None:
        """Count the end of an accepted call; ``succeeded_key`` is its key if a 2xx was delivered."""
        self.in_flight -= 1
        if not delivered:
            self.abandoned += 1
        elif succeeded_key is not None:
            self.keys.succeeded(succeeded_key)

    def report(self, *, enforcer: str, seed: int) -> Report:
        """Return the counts so far."""
        return Report(
            accepted=self.accepted,
            rejected=self.rejected,
            tokens=self.tokens,
            errors=dict(self.errors),
            abandoned=self.abandoned,
            in_flight=self.in_flight,
            max_in_flight=self.max_in_flight,
            limits=[self._limit_report(position) for position in range(len(self._limits))],
            first_arrival=None if self._first_ns is None else self._first_ns / _NS_PER_S,
            last_arrival=None if self._last_ns is None else self._last_ns / _NS_PER_S,
            rate_per_s=self._rate_per_s(),
            latency_given=self.latencies.report(),
            idempotency=IdempotencyReport(
                keys=self.keys.distinct,
                repeated_keys=self.keys.repeated,
                calls_after_2xx=self.keys.repeated_after_success,
                keys_after_2xx=list(self.keys.examples),
                forgotten=self.keys.forgotten,
            ),
            enforcer=enforcer,
            seed=seed,
        )

    def _limit_report(self, position: int) -> LimitReport:
        limit = self._limits[position]
        largest = self.max_in_flight if limit.unit is Unit.CONCURRENT else self._peaks[position].peak
        return LimitReport(str(limit), self._rejected_by_limit[position], largest)

    def _rate_per_s(self) -> float | None:
        """Return gaps between accepted calls per second, from the first one to the last."""
        if self._accepted_ns is None or self._accepted_ns[0] == self._accepted_ns[1]:
            return None
        return (self.accepted - 1) * _NS_PER_S / (self._accepted_ns[1] - self._accepted_ns[0])


class LatencyHistogram:
    """Latencies in logarithmic buckets, so that any number of them takes a few kilobytes."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self._count = 0
        self._sum_s = 0.0
        self._max_s = 0.0

    def add(self, latency_s: float) -> None:
        """Count one latency."""
        self._count += 1
        self._sum_s += latency_s
        self._max_s = max(self._max_s, latency_s)
        self._buckets[round(math.log(max(latency_s, 1e-9)) * _BUCKETS_PER_E)] += 1

    def report(self) -> LatencyReport:
        """Return mean, quantiles and maximum; zeros when nothing was counted."""
        mean_s = self._sum_s / self._count if self._count else 0.0
        return LatencyReport(self._count, mean_s, self._quantile_s(0.5), self._quantile_s(0.99), self._max_s)

    def _quantile_s(self, share: float) -> float:
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= share * self._count:
                return round(min(math.exp(bucket / _BUCKETS_PER_E), self._max_s), 9)
        return 0.0
