"""What calls that wait in a worker process cost those that it makes: with many waiting against few, at the same rate.

A worker takes in two seconds of a paced API's work, and not more chunks than ``CALLMILL_CHUNKS_PER_PROCESS``: so the
rate decides how many calls can wait. Both runs have chunks of 100 jobs. In one, there is always more work than the
worker takes in; in the other, the producer keeps back what is not needed yet.
"""

from __future__ import annotations

from statistics import median

from figure import Figure
from scale import Scale
from stage import Stage
from worker_run import Run, cpu_figure, kept_pending, missed_rate, run_in_the_middle, submitted

_RATE = 3_000
_BURST = 200
"""The bucket forgives 66 ms: a guard longer than what it forgives would bound the rate."""

_CHUNKS = 128
_JOBS = 2_000
"""Of one batch: the chunks of larger ones grow beyond 100 jobs."""

_FEW = 400
"""A producer that holds back submits a fourth of what may be pending at once: 100 jobs."""

_UNMEASURED_S = 6
"""Seconds of work beside those that are measured."""


def measure(scale: Scale) -> list[Figure]:
    """Run a worker that has few calls waiting and one that has many, in turns."""
    sizes = [_JOBS] * (_RATE * (scale.paced_s + _UNMEASURED_S) // _JOBS)
    few: list[Run] = []
    many: list[Run] = []
    with Stage([f"{_RATE}/second"], burst=_BURST) as stage:
        for _ in range(scale.rounds):
            for runs, work in ((few, kept_pending(stage, "/ok", _FEW)), (many, submitted(stage, "/ok", sizes))):
                runs.append(run_in_the_middle(stage, work, measured_s=scale.paced_s, chunks_per_process=_CHUNKS))
    return [
        cpu_figure(
            "worker CPU per call, many calls waiting",
            many,
            "few waiting",
            few,
            must=1.05,
            aim=1.0,
            note=f"{_seen(many)} against {_seen(few)}",
            doubt=missed_rate([*many, *few], _RATE),
        )
    ]


def _seen(runs: list[Run]) -> str:
    waiting, per_s = median(run.waiting for run in runs), median(run.calls_per_s for run in runs)
    return f"{waiting:,.0f} waiting at {per_s:,.0f} calls/s"
