"""The matrix: every way of counting, at every rate, with real workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from figure import Figure
from figures.limits.arena import Api, Arena
from figures.limits.at_limit import Measured, run_at_limit
from figures.limits.cases import Case, matrix
from figures.limits.scale import LimitScale

_LOW_RATES, _HIGH_RATE = (10, 100), 1000

_ONE_RUN_PPM = 10
"""Refusals that a single run may have on a noisy machine, in a million calls."""


def low_rates(scale: LimitScale) -> Iterator[Figure]:
    """Run all cases of up to 100 calls a second side by side, on one fleet."""
    yield from _measure([[case for rate in _LOW_RATES for case in matrix(rate)]], scale)


def high_rate(scale: LimitScale) -> Iterator[Figure]:
    """Run the cases of 1,000 calls a second one after the other."""
    yield from _measure([[case] for case in matrix(_HIGH_RATE)], scale)


def _measure(groups: Sequence[Sequence[Case]], scale: LimitScale) -> Iterator[Figure]:
    apis = {case.api: Api(case.server(), case.profile()) for group in groups for case in group}
    with Arena(apis) as arena:
        for group in groups:
            seconds = {case: scale.seconds if case.window_s == 1 else scale.long_window_s for case in group}
            runs = [run_at_limit(arena, seconds) for _ in range(scale.runs)]
            for case in group:
                yield from figures(case, [run[case] for run in runs])


def figures(case: Case, runs: Sequence[Measured]) -> list[Figure]:
    """Return the figures of one case."""
    refusals = Figure(
        name=f"429s, {case.name}",
        unit="ppm",
        runs=tuple(run.calls.refused_ppm for run in runs),
        must=0,
        must_each=_ONE_RUN_PPM,
        aim=0,
        note=f"{' + '.join(str(run.calls.refused) for run in runs)} calls",
    )
    trips = Figure(
        name=f"round trips per call, {case.name}", unit="", runs=tuple(run.trips for run in runs), must=0.1, aim=0.04
    )
    return [refusals, _share(case, runs), *([trips] if case.rate == _HIGH_RATE else [])]


def _share(case: Case, runs: Sequence[Measured]) -> Figure:
    guard_s, missed = median(run.guard_s for run in runs), median(run.missed for run in runs)
    bound = case.bound(guard_s)
    must, aim = _bounds_of_share(case, bound)
    parts = [
        "" if case.has_burst else f"bound {bound:.2%} at a guard of {guard_s * 1000:.1f} ms",
        f"missed by stalls {missed:.2%}",
        f"{median(run.trips for run in runs):.3f} round trips a call",
        str(runs[-1].load),
    ]
    return Figure(
        name=f"share used, {case.name}",
        unit="%",
        runs=tuple(run.used * 100 for run in runs),
        better="higher",
        must=must,
        aim=aim,
        note="; ".join(filter(None, parts)),
    )


def _bounds_of_share(case: Case, bound: float) -> tuple[float, float]:
    """Return what has to be used and what is wished for, in per cent."""
    if not case.has_burst:
        return min(99.0, bound * 100) - 0.5, bound * 100 - 0.1
    return (99.0, 99.9) if case.rate in _LOW_RATES else (98.0, 99.5)
