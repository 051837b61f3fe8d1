"""How much of a limit can be used without ever breaking it, and why it is no more."""

from __future__ import annotations

import math

from msgspec import Struct

from callmill.config.limit_spec import Enforcer, LimitSpec, Unit
from callmill.limits.rules import Clock, LimitRules, clocks, validity_s

WORTH_A_WORD = 0.99
UNUSABLE = 0.90
QUOTA_STEPS = 96
"""Quotas are counted in this many steps a window; see ``lua/reserve.lua``."""


class Guard(Struct, frozen=True):
    """The timing uncertainty that the pace of all workers allows for.

    Attributes:
        total_s: How far apart from their plan calls may reach the server.
        lateness_s: The part of it that is the lateness of the host.
        way_s: The part of it that is the way to Redis.
        validity_s: The part of it that is how late a slot may still be fired.
    """

    total_s: float
    lateness_s: float = 0.0
    way_s: float = 0.0
    validity_s: float = 0.0


class Bound(Struct, frozen=True):
    """What can be had of one limit with no violation at all.

    Attributes:
        limit: The limit.
        pace_per_s: Units per second that are granted at most; None where nothing is paced, or not known.
        usable: That as a share of the limit; None where the limit is not known.
        why: In words, where it is below 99 % or not known; None elsewhere.
    """

    limit: LimitSpec
    pace_per_s: float | None
    usable: float | None
    why: str | None = None


def bounds(
    rules: LimitRules, guard: Guard, *, quantum_s: float | None = None, phase_known: bool = False
) -> tuple[Bound, ...]:
    """The bound of each limit, in their order.

    Args:
        rules: The limits and how the server counts.
        guard: What is measured.
        quantum_s: The server enforces its windows in parts of this length.
        phase_known: The server's headers tell when its fixed windows begin.
    """
    return tuple(_bound(spec, rules, guard, quantum_s, phase_known=phase_known) for spec in rules.limits)


def measured(rules: LimitRules, total_s: float, lateness_s: float, way_s: float) -> Guard:
    """The guard in force, with its parts as one process measures them."""
    return Guard(total_s, lateness_s, way_s, validity_s(rules))


def _bound(spec: LimitSpec, rules: LimitRules, guard: Guard, quantum_s: float | None, *, phase_known: bool) -> Bound:
    if not spec.amount and spec.unit is not Unit.CONCURRENT:
        return Bound(spec, None, None, "not known yet: found by trying, from the answers")
    if spec.unit is Unit.CONCURRENT:
        return Bound(spec, None, 1.0)
    clock = clocks(LimitRules((), rules.enforcer, rules.burst, rules.guard_s), (spec,))[0]
    if clock.quota:
        usable = spec.window_s / (spec.window_s * (1 + 1 / QUOTA_STEPS) + guard.total_s)
        return _of(spec, usable, _quota_words(spec, usable))
    if rules.enforcer is Enforcer.BUCKET:
        usable = _bucket_share(clock, guard.total_s)
        return _of(spec, usable, _bucket_words(spec, usable, rules.burst, guard))
    if rules.enforcer is Enforcer.FIXED and phase_known:
        return _of(spec, 1.0, "")
    counted_s = min(quantum_s or spec.window_s, spec.window_s)
    usable = counted_s / (counted_s + guard.total_s)
    return _of(spec, usable, _strict_words(spec, usable, rules, guard, counted_s))


def _of(spec: LimitSpec, usable: float, words: str) -> Bound:
    pace = usable * spec.amount / spec.window_s
    return Bound(spec, pace, usable, words if usable < WORTH_A_WORD else None)


def _bucket_share(clock: Clock, guard_s: float) -> float:
    excess_us = max(0.0, guard_s * 1e6 - clock.slack_us)
    return clock.amount / clock.spec.amount * clock.window_us / (clock.window_us + clock.gain * excess_us)


def _strict_words(spec: LimitSpec, usable: float, rules: LimitRules, guard: Guard, counted_s: float) -> str:
    counts = {
        Enforcer.SLIDING: "its server counts a sliding window",
        Enforcer.FIXED: "its server counts fixed windows, and nobody knows when they begin",
    }.get(rules.enforcer, "nobody knows how its server counts, so it is met as the strictest")
    if counted_s < spec.window_s:
        counts += f", in parts of {counted_s:g} s"
    better = "A longer window, a bucket server or a quieter host would give more."
    if rules.enforcer is Enforcer.UNKNOWN:
        better = "If it is a bucket, say so in the profile (enforcer, burst); else a quieter host would give more."
    return (
        f"{_at_most(spec, usable)}: {counts}, and calls may reach it up to {_apart(guard, rules)} "
        f"No client that may miss its plan so far can use more without breaking the limit now and then. {better}"
    )


def _bucket_words(spec: LimitSpec, usable: float, burst: int, guard: Guard) -> str:
    rate = spec.amount / spec.window_s
    enough = 1 + math.ceil(rate * guard.total_s)
    if enough <= burst:
        return f"{_at_most(spec, usable)}: its server keeps rates as whole thousandths of a call per second."
    remedy = f"A burst of {enough} would do: ask for it, or, if the server has it, write it into the profile (`burst`)."
    if burst == 1:
        verdict = ", unusable at speed" if usable < UNUSABLE else ""
        return (
            f"{_at_most(spec, usable)}{verdict}: its bucket forgives nothing (burst 1), so the {_ms(guard.total_s)} "
            f"by which calls may miss their plan are added between any two, for every client. {remedy}"
        )
    return (
        f"{_at_most(spec, usable)}: its bucket forgives {_ms((burst - 1) / rate)} (burst {burst}), and calls may miss "
        f"their plan by {_ms(guard.total_s)}. {remedy}"
    )


def _quota_words(spec: LimitSpec, usable: float) -> str:
    step_s = spec.window_s / QUOTA_STEPS
    step = f"{step_s / 60:g} minutes" if step_s >= 60 else f"{step_s:g} s"
    return (
        f"{_at_most(spec, usable)} when it is spent again and again: what was spent is counted in steps of {step}, "
        "and is free again when its step is over. The first time all of it can be spent."
    )


def _at_most(spec: LimitSpec, usable: float) -> str:
    # Cut, not rounded: more would be a promise.
    return f"{math.floor(usable * 1000) / 10:.1f} % of {spec} at most"


def _apart(guard: Guard, rules: LimitRules) -> str:
    if rules.guard_s is not None:
        return f"{_ms(guard.total_s)} apart from their plan (the guard that is set)."
    parts = [
        f"lateness of this host {_ms(guard.lateness_s)}",
        f"way to Redis {_ms(guard.way_s)}",
        f"slot validity {_ms(guard.validity_s)}",
    ]
    rest_s = guard.total_s - guard.lateness_s - guard.way_s - guard.validity_s
    if rest_s >= 0.001:
        parts.append(f"{_ms(rest_s)} more that some process needed within the last minute")
    return f"{_ms(guard.total_s)} apart from their plan ({', '.join(parts)})."


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms"
