"""What an API's server enforces, and what follows from it for the pace of calls.

A server that refills a bucket forgives a call that comes early by ``burst - 1`` emissions; its calls may be paced at
exactly ``window / amount``. Every other server is met by ``(window + guard) / amount``: then no window holds more than
``amount`` calls, as long as no call reaches the server later, relative to another, than ``guard``.

Limits with a window of an hour or longer are quotas: not paced but counted, so that no window holds more than
``amount``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from msgspec import Struct, field

from callmill.config.limit_spec import AUTO, NONE, Enforcer, LimitSpec, Scope, Unit
from callmill.jobs.traffic import TrafficClass

SHORT_WINDOW_VALIDITY_S = 0.005
LONG_WINDOW_VALIDITY_S = 0.050
LONGEST_VALIDITY_S = 0.250
SHORTEST_VALIDITY_S = 0.002
SHORTEST_QUOTA_S = 3600
FIRST_GUESS_PER_S = 10
"""Where a search for an unknown limit begins."""

FASTEST_GUESS = 1e5
"""As a factor of the first guess: faster than any API."""

COLUMNS = {Unit.REQUESTS: 1, Unit.TOKENS: 2, Unit.INPUT_TOKENS: 3, Unit.OUTPUT_TOKENS: 4}
"""In which column of a call's costs the scripts find what a limit counts."""


class KeyRules(Struct, frozen=True):
    """One credential of an API.

    Attributes:
        name: What people call it; never the secret itself.
        limits: What holds for this one beyond the limits "per key".
    """

    name: str = "default"
    limits: tuple[LimitSpec, ...] = ()


class LimitRules(Struct, frozen=True):
    """The limits of one API.

    Attributes:
        limits: All of them hold at once.
        enforcer: How the server counts. Unknown is met as the strictest.
        burst: How many calls at once a bucket server takes; without meaning for the others.
        guard_s: Timing uncertainty to allow for. None: derived from what is measured.
        quantum_s: A server that counts longer windows in parts of this length; None: it does not.
        keys: The credentials that a call may use; never empty.
        models: Limits of single models beyond those "per model".
        tenant_weights: Parts of the limits that tenants get while all want more; 1 for those not named.
        learned_pace: Whether a pace that nobody wrote down is in force.
        learned_in_flight: Whether a number of calls in flight that nobody wrote down is, beside a written pace.
    """

    limits: tuple[LimitSpec, ...] = ()
    enforcer: Enforcer = Enforcer.UNKNOWN
    burst: int = 1
    guard_s: float | None = None
    quantum_s: float | None = None
    keys: tuple[KeyRules, ...] = (KeyRules(),)
    models: Mapping[str, tuple[LimitSpec, ...]] = field(default_factory=dict)
    tenant_weights: Mapping[str, float] = field(default_factory=dict)
    learned_pace: bool = False
    learned_in_flight: bool = False

    @property
    def learns(self) -> bool:
        """Whether limits that nobody wrote down are learned."""
        return NONE not in self.limits

    @property
    def learns_pace(self) -> bool:
        """Whether a pace is learned: where none is written down."""
        return self.learns and not self.has_pace

    @property
    def learns_in_flight(self) -> bool:
        """Whether the number of calls in flight is learned now: from the start where no pace is written down."""
        return self.learns and (self.learned_in_flight or not self.has_pace)

    @property
    def has_pace(self) -> bool:
        """Whether some limit that is written down paces calls."""
        return any(not _is_quota(spec) for spec in _rates(self.all()))

    @property
    def limits_models(self) -> bool:
        """Whether some model has limits of its own."""
        return bool(self.models) or any(spec.scope is Scope.MODEL for spec in self.limits)

    def weight_of(self, traffic: TrafficClass) -> float:
        """The part of the limits that a class gets while all want more."""
        return traffic.priority.weight * self.tenant_weights.get(traffic.tenant, 1.0)

    def of_api(self) -> list[LimitSpec]:
        """Limits that all calls share."""
        return [spec for spec in self.limits if spec.scope is Scope.API]

    def of_key(self, key: KeyRules) -> list[LimitSpec]:
        """Limits of one credential."""
        return [*(spec for spec in self.limits if spec.scope is Scope.KEY), *_scoped(key.limits, Scope.KEY)]

    def of_model(self, model: str) -> list[LimitSpec]:
        """Limits of one model; none for calls that name no model."""
        if not model:
            return []
        own = _scoped(self.models.get(model, ()), Scope.MODEL)
        return [*(spec for spec in self.limits if spec.scope is Scope.MODEL), *own]

    def all(self) -> list[LimitSpec]:
        """Every limit that some call may meet."""
        of_keys = (spec for key in self.keys for spec in key.limits)
        of_models = (spec for specs in self.models.values() for spec in specs)
        return [*(spec for spec in self.limits if spec != NONE), *of_keys, *of_models]


class Clock(Struct, frozen=True):
    """One limit as the scripts in Redis keep it.

    A pace has an emission of (window + gain * max(0, guard - slack)) / amount; a quota is counted.

    Attributes:
        spec: The limit.
        window_us: Length of its window.
        amount: Units per window, as the server really computes them.
        gain: How much of a guard that exceeds the slack is added to the window.
        slack_us: Timing uncertainty that the server forgives by itself.
        quota: Spent as fast as the other limits allow, then waited for.
    """

    spec: LimitSpec
    window_us: int
    amount: float
    gain: float
    slack_us: float
    quota: bool = False

    def fields(self) -> dict[Any, Any]:  # keys as the client of Redis is typed
        """What is written into the limit's hash."""
        return {
            "window": self.window_us,
            "amount": self.amount,
            "gain": self.gain,
            "slack": self.slack_us,
            "column": COLUMNS[self.spec.unit],
            "quota": int(self.quota),
        }

    def beginning(self) -> dict[str, Any]:
        """What is written into the limit's hash where it is not there yet."""
        if self.spec.amount:
            return {}
        if self.spec != AUTO:
            return {"factor": FASTEST_GUESS}
        return {"factor": 1, "good": 1, "mode": "start", "most": FASTEST_GUESS, "hold": 30_000_000, "since": 0}


def clocks(rules: LimitRules, specs: Iterable[LimitSpec] | None = None) -> tuple[Clock, ...]:
    """One clock per unit and window of the limits, those of the API unless given, of the lowest amount."""
    lowest: dict[tuple[Unit, int, bool], LimitSpec] = {}
    for spec in _rates(rules.of_api() if specs is None else specs):
        key = (spec.unit, spec.window_s, spec == AUTO)
        if key not in lowest or spec.amount < lowest[key].amount:
            lowest[key] = spec
    return tuple(_clock(spec, rules) for spec in lowest.values())


def learned_clock(spec: LimitSpec, rules: LimitRules) -> Clock:
    """The clock of a pace that nobody wrote down."""
    return _clock(spec, rules)


def concurrency(specs: Iterable[LimitSpec]) -> int | None:
    """How many calls may be in flight at once under these limits; None without such a limit."""
    return min((spec.amount for spec in specs if spec.unit is Unit.CONCURRENT and spec != NONE), default=None)


def validity_s(rules: LimitRules) -> float:
    """How late a slot may still be fired; a later one is dropped: the server would see it beside its successors."""
    specs = list(_rates(rules.all()))
    strict = SHORT_WINDOW_VALIDITY_S if shortest_window_s(rules) <= 1 else LONG_WINDOW_VALIDITY_S
    if rules.enforcer is Enforcer.BUCKET:
        paced = (spec for spec in specs if spec.unit is Unit.REQUESTS and spec != AUTO and not _is_quota(spec))
        rates = [spec.amount / spec.window_s for spec in paced]
        forgiven = (rules.burst - 1) / (4 * max(rates)) if rates else strict
        return min(LONGEST_VALIDITY_S, max(SHORTEST_VALIDITY_S, forgiven))
    if rules.guard_s is not None:  # what is fired late must fit in the guard, with room for the way to the server
        return min(strict, max(SHORTEST_VALIDITY_S, 0.625 * rules.guard_s))
    return strict


def shortest_window_s(rules: LimitRules) -> float:
    """The shortest window that the server counts in."""
    windows = (spec.window_s for spec in _rates(rules.all()) if not _is_quota(spec))
    return min((min(window, rules.quantum_s or window) for window in windows), default=1.0)


def fixed_guard_s(rules: LimitRules) -> float | None:
    """The guard where it is not derived from measurements: as configured, or what a bucket server's burst is for."""
    if rules.guard_s is None and rules.enforcer is Enforcer.BUCKET:
        # As much for the way as for late slots: below the burst's slack, but where burst / rate is tiny. The rest of it
        # is for stalls, after which late calls meet those that are on time.
        return 2 * validity_s(rules)
    return rules.guard_s


def _scoped(specs: Iterable[LimitSpec], scope: Scope) -> list[LimitSpec]:
    return [LimitSpec(spec.amount, spec.unit, spec.window_s, scope) for spec in specs]


def _rates(specs: Iterable[LimitSpec]) -> Iterator[LimitSpec]:
    return (spec for spec in specs if spec.unit is not Unit.CONCURRENT)


def _is_quota(spec: LimitSpec) -> bool:
    return spec.window_s >= SHORTEST_QUOTA_S


def _clock(spec: LimitSpec, rules: LimitRules) -> Clock:
    window_us: float = spec.window_s * 1_000_000
    if not spec.amount:
        return Clock(spec, 1_000_000, FIRST_GUESS_PER_S, gain=0, slack_us=0)
    if _is_quota(spec):
        return Clock(spec, spec.window_s * 1_000_000, spec.amount, gain=0, slack_us=0, quota=True)
    amount: float = spec.amount
    if rules.quantum_s is not None and rules.quantum_s < spec.window_s:
        amount, window_us = amount * rules.quantum_s / spec.window_s, rules.quantum_s * 1e6
    if rules.enforcer is not Enforcer.BUCKET:
        return Clock(spec, round(window_us), amount, gain=1, slack_us=0)
    if spec.unit.is_tokens:  # a call is paid for before the next one: lateness finds the bucket fuller, never emptier
        return Clock(spec, round(window_us), amount, gain=0, slack_us=0)
    if rules.quantum_s is None:
        amount = _as_nginx_computes(spec)
    return Clock(spec, round(window_us), amount, gain=amount, slack_us=(rules.burst - 1) * window_us / amount)


def _as_nginx_computes(spec: LimitSpec) -> float:
    # nginx keeps rates as whole thousandths of a call per second: its 10r/m is 9.96 per minute.
    if spec.window_s != 60 or spec.amount * 1000 < spec.window_s:
        return spec.amount
    return spec.amount * 1000 // spec.window_s * spec.window_s / 1000
