"""What an API's server enforces, and what follows from it for the pace of calls.

A server that refills a bucket forgives a call that comes early by ``burst - 1`` emissions; its calls may be paced at
exactly ``window / amount``. Every other server is met by ``(window + guard) / amount``: then no window holds more than
``amount`` calls, as long as no call reaches the server later, relative to another, than ``guard``.

Limits with a window of an hour or longer are quotas: not paced but counted, so that no window holds more than
``amount``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from callmill.config.limit_spec import Enforcer, LimitSpec, Unit

SHORT_WINDOW_VALIDITY_S = 0.005
LONG_WINDOW_VALIDITY_S = 0.050
LONGEST_VALIDITY_S = 0.250
SHORTEST_VALIDITY_S = 0.002
SHORTEST_QUOTA_S = 3600


class LimitRules(Struct, frozen=True):
    """The limits of one API.

    Attributes:
        limits: All of them hold at once.
        enforcer: How the server counts. Unknown is met as the strictest.
        burst: How many calls at once a bucket server takes; without meaning for the others.
        guard_s: Timing uncertainty to allow for. None: derived from what is measured.
    """

    limits: tuple[LimitSpec, ...]
    enforcer: Enforcer = Enforcer.UNKNOWN
    burst: int = 1
    guard_s: float | None = None


class Clock(Struct, frozen=True):
    """One limit as the script in Redis keeps it.

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

    def fields(self) -> dict[Any, float]:  # keys as the client of Redis is typed
        """What is written into the limit's hash."""
        return {
            "window": self.window_us,
            "amount": self.amount,
            "gain": self.gain,
            "slack": self.slack_us,
            "tokens": int(self.spec.unit is Unit.TOKENS),
            "quota": int(self.quota),
        }


def clocks(rules: LimitRules) -> tuple[Clock, ...]:
    """One clock per unit and window, of the lowest amount; concurrency limits have none."""
    lowest: dict[tuple[Unit, int], LimitSpec] = {}
    for spec in _rates(rules):
        key = (spec.unit, spec.window_s)
        if key not in lowest or spec.amount < lowest[key].amount:
            lowest[key] = spec
    return tuple(_clock(spec, rules) for spec in lowest.values())


def concurrency(rules: LimitRules) -> int | None:
    """How many calls may be in flight at once; None without such a limit."""
    return min((spec.amount for spec in rules.limits if spec.unit is Unit.CONCURRENT), default=None)


def validity_s(rules: LimitRules) -> float:
    """How late a slot may still be fired; a later one is dropped: the server would see it beside its successors."""
    windows = [spec.window_s for spec in _rates(rules)]
    strict = SHORT_WINDOW_VALIDITY_S if not windows or min(windows) <= 1 else LONG_WINDOW_VALIDITY_S
    if rules.enforcer is Enforcer.BUCKET:
        paced = (spec for spec in _rates(rules) if spec.unit is Unit.REQUESTS and not _is_quota(spec))
        rates = [spec.amount / spec.window_s for spec in paced]
        forgiven = (rules.burst - 1) / (2 * max(rates)) if rates else strict
        return min(LONGEST_VALIDITY_S, max(SHORTEST_VALIDITY_S, forgiven))
    if rules.guard_s is not None:  # what is fired late must fit in the guard, with room for the way to the server
        return min(strict, max(SHORTEST_VALIDITY_S, 0.625 * rules.guard_s))
    return strict


def fixed_guard_s(rules: LimitRules) -> float | None:
    """The guard where it is not derived from measurements: as configured, or what a bucket server's burst is for."""
    if rules.guard_s is None and rules.enforcer is Enforcer.BUCKET:
        # Half for late slots, half for the way to the server: below the burst's slack, but where burst / rate is tiny.
        return 2 * validity_s(rules)
    return rules.guard_s


def _rates(rules: LimitRules) -> Iterator[LimitSpec]:
    return (spec for spec in rules.limits if spec.unit is not Unit.CONCURRENT)


def _is_quota(spec: LimitSpec) -> bool:
    return spec.window_s >= SHORTEST_QUOTA_S


def _clock(spec: LimitSpec, rules: LimitRules) -> Clock:
    window_us = spec.window_s * 1_000_000
    if _is_quota(spec):
        return Clock(spec, window_us, spec.amount, gain=0, slack_us=0, quota=True)
    if rules.enforcer is not Enforcer.BUCKET:
        return Clock(spec, window_us, spec.amount, gain=1, slack_us=0)
    if (
        spec.unit is Unit.TOKENS
    ):  # a call is paid for before the next one, so lateness finds the bucket fuller, never emptier
        return Clock(spec, window_us, spec.amount, gain=0, slack_us=0)
    amount = _as_nginx_computes(spec)
    return Clock(spec, window_us, amount, gain=amount, slack_us=(rules.burst - 1) * window_us / amount)


def _as_nginx_computes(spec: LimitSpec) -> float:
    # nginx keeps rates as whole thousandths of a call per second: its 10r/m is 9.96 per minute.
    if spec.window_s != 60 or spec.amount * 1000 < spec.window_s:
        return spec.amount
    return spec.amount * 1000 // spec.window_s * spec.window_s / 1000
