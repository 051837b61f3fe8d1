"""Measure how workers find the limits of APIs whose profile has none, on real servers with real limits.

``python benchmarks/bench_unwritten_limits.py [--only limit_req]... [--runs 5] [--workers 4]... [--quick]``; two hours
with everything, mostly waiting. Each run has a server, a Redis and workers of its own: nothing is known at its start.
Its time begins when the first call reaches the server and ends when the last 200 is sent, by the server's log.
Refusals and times are medians of the runs, with the least and the most in brackets; the most refusals of one job are
the worst of all runs. Prints a table as it goes; exit code 1: a target is missed, or something could not be measured.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from statistics import median

from msgspec import Struct

TESTS = Path(__file__).parents[1] / "tests"
sys.path.append(str(TESTS))

from real_limiters import MissingProgramError  # noqa: E402 - the kits of the tests are found by the path above
from unwritten_cases import Case, cases  # noqa: E402 - as above
from unwritten_runs import Ideal, Run, run_alone, run_batch  # noqa: E402 - as above

_WORKERS = (1, 4)
_QUICK_SHARE, _QUICK_JOBS = 3, 50
"""A quick run does one of so many jobs, but not fewer than that."""

_HEADINGS = ("server", "workers", "refused", "time", "most refusals of a job", "else", "")


class Check(Struct, frozen=True):
    """A figure as text, its value, and the most that it must be; None: it only informs."""

    figure: str
    value: float
    must: float | None
    unit: str = ""

    @property
    def is_met(self) -> bool:
        """Whether it holds."""
        return self.must is None or self.value <= self.must

    def __str__(self) -> str:
        """Return the figure with its bound."""
        if self.must is None:
            return self.figure
        return f"{self.figure}, must <= {self.must:.3g}{self.unit}{'' if self.is_met else ' MISSED'}"


class Bench:
    """What was asked for, and what came of it."""

    def __init__(self, *, runs: int, workers: Sequence[int], quick: bool) -> None:
        self._runs = runs
        self._workers = workers
        self._quick = quick
        self.missed = 0

    def measure(self, case: Case) -> None:
        """Print a line for each number of workers, or one that says why there is none."""
        try:
            for workers in self._workers:
                self._row(case, workers)
        except MissingProgramError as error:
            _line(case.name, "", f"skipped: {error}", "", "", "", "")

    def _row(self, case: Case, workers: int) -> None:
        jobs = min(case.jobs, max(_QUICK_JOBS, case.jobs // _QUICK_SHARE)) if self._quick else case.jobs
        try:
            runs = [self._run(case, workers, jobs, number) for number in range(1, self._runs + 1)]
        except MissingProgramError:
            raise
        except Exception:  # noqa: BLE001 - one that cannot be measured must not cost the others
            traceback.print_exc()
            self.missed += 1
            _line(case.name, str(workers), "", "", "", "", "FAILED")
            return
        first, *others = _checks(case, runs)
        wrong = [f"run {number}: {run.told}" for number, run in enumerate(runs, 1) if run.told]
        is_met = not wrong and all(check.is_met for check in (first, *others))
        self.missed += not is_met
        time, most, *more = others
        verdict = "ok" if is_met else "MISSED"
        _line(case.name, str(workers), str(first), str(time), str(most), "; ".join([*map(str, more), *wrong]), verdict)

    def _run(self, case: Case, workers: int, jobs: int, number: int) -> Run:
        ideal = Ideal(case.ideal_s(jobs)) if case.ideal_s else _alone(case, jobs, number)
        run = run_batch(case.server(number), jobs=jobs, workers=workers, ideal=ideal)
        tally = run.tally
        print(
            f"{case.name}, workers: {workers}, run {number}: {tally.calls} calls, {tally.refused} refused, "
            f"{tally.took_s:.2f} s of {ideal.took_s:.2f} s, one job {tally.most_refused} times; "
            f"{run.told or 'all ok'}; load {os.getloadavg()[0]:.1f}",
            file=sys.stderr,
            flush=True,
        )
        return run


@cache
def _alone(case: Case, jobs: int, number: int) -> Ideal:
    return run_alone(case.server(number), jobs=jobs)


def _checks(case: Case, runs: Sequence[Run]) -> Iterator[Check]:
    """Yield refusals, time and the most refusals of one job, then what only some cases are judged by."""
    must = case.must
    yield _median(runs, lambda run: run.tally.refused_percent, must.refused, " %", ".1f")
    yield _median(runs, lambda run: run.times, must.times, "x", ".2f")
    most = max(run.tally.most_refused for run in runs)
    yield Check(str(most), most, must.most)
    if must.latency is not None:
        yield _median(runs, lambda run: run.latency, must.latency, "x latency", ".2f")
    if must.calls is not None:
        yield _median(runs, lambda run: run.tally.calls, must.calls, " calls", ".0f")


def _median(runs: Sequence[Run], value: Callable[[Run], float], must: float | None, unit: str, form: str) -> Check:
    values = sorted(map(value, runs))
    spread = f" ({values[0]:{form}}-{values[-1]:{form}})" if len(values) > 1 else ""
    return Check(f"{median(values):{form}}{unit}{spread}", median(values), must, unit)


def _line(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> int:
    """Measure what was asked for; return the exit code."""
    parser = argparse.ArgumentParser(description="Measure how workers find limits that nobody wrote down.")
    parser.add_argument("--only", action="append", metavar="TEXT", help="servers whose name has this in it")
    parser.add_argument("--runs", type=int, help="runs of each case; default: 5, quick: 1")
    parser.add_argument("--workers", type=int, action="append", help="worker processes; default: 1 and 4")
    parser.add_argument("--quick", action="store_true", help="few jobs, one run: shows that it works")
    given = parser.parse_args()
    wanted = [case for case in cases() if not given.only or any(text in case.name for text in given.only)]
    if not wanted:
        parser.error(f"--only: there are {'; '.join(case.name for case in cases())}")
    # As Ctrl-C does: what was started is ended on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for name in [name for name in os.environ if name.startswith("CALLMILL_")]:
        del os.environ[name]  # the user's own installation must neither be measured nor touched
    bench = Bench(runs=given.runs or (1 if given.quick else 5), workers=given.workers or _WORKERS, quick=given.quick)
    _line(*_HEADINGS)
    _line(*("---" for _ in _HEADINGS))
    for case in wanted:
        bench.measure(case)
    return int(bench.missed > 0)


if __name__ == "__main__":
    sys.exit(main())
