"""Measure the limiter against what it promises, and print one table as it goes.

``python benchmarks/bench_limits.py [--quick] [--only NAME]... [--runs 3]``. What a figure means: docs/benchmarks.md.
Exit code 1: something could not be measured. A bound that is missed is a line in the table, no error: machines differ.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import msgspec
import report
from figure import Figure
from figures.limits import fairness, grants, kills, matrix, restarts, tenants, tokens, waits
from figures.limits.scale import FULL, QUICK, LimitScale

FIGURES: dict[str, Callable[[LimitScale], Iterator[Figure]]] = {
    "matrix": matrix.low_rates,
    "matrix-1000": matrix.high_rate,
    "grants": grants.measure,
    "waits": waits.measure,
    "fairness": fairness.measure,
    "tenants": tenants.measure,
    "tokens": tokens.measure,
    "restarts": restarts.measure,
    "kills": kills.measure,
}
SMALL = {"fairness", "tenants", "tokens"}
"""These leave the machine nearly idle, and run at the same time."""

RESULTS = Path(__file__).with_name("results-limits.json")


def main() -> int:
    """Measure what was asked for; return the exit code."""
    parser = argparse.ArgumentParser(description="Measure the limiter against what it promises.")
    parser.add_argument("--quick", action="store_true", help="short runs: shows that it works, figures are rough")
    parser.add_argument("--only", action="append", choices=FIGURES, metavar="NAME", help=", ".join(FIGURES))
    parser.add_argument("--runs", type=int, help="runs of each case of the matrix; their median is the figure")
    parser.add_argument("--seconds", type=float, help="seconds of one run of the matrix")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file for every single run")
    given = parser.parse_args()
    # As Ctrl-C does: what was started is ended on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for name in [name for name in os.environ if name.startswith("CALLMILL_")]:
        del os.environ[name]  # the user's own installation must neither be measured nor touched
    scale = QUICK if given.quick else FULL
    if given.runs:
        scale = msgspec.structs.replace(scale, runs=given.runs)
    if given.seconds:
        scale = msgspec.structs.replace(scale, seconds=given.seconds, long_window_s=given.seconds)
    print(report.head(), flush=True)
    measured = _measure([name for name in FIGURES if name in (given.only or FIGURES)], scale)
    done = {name: figures for name, figures in measured.items() if figures is not None}
    report.write(given.results, done, "quick" if given.quick else "full")
    return 0 if len(done) == len(measured) else 1


def _measure(names: Sequence[str], scale: LimitScale) -> dict[str, list[Figure] | None]:
    measured = {name: _measured(name, scale) for name in names if name not in SMALL}
    small = [name for name in names if name in SMALL]
    with ThreadPoolExecutor(len(SMALL)) as threads:
        return measured | dict(zip(small, threads.map(partial(_measured, scale=scale), small), strict=True))


def _measured(name: str, scale: LimitScale) -> list[Figure] | None:
    began_s, figures = time.perf_counter(), []
    try:
        for figure in FIGURES[name](scale):
            figures.append(figure)
            print(report.row(figure), flush=True)
    except Exception:  # noqa: BLE001 - one that cannot be measured must not cost the others
        print(f"{name} FAILED", file=sys.stderr)
        traceback.print_exc()
        return None
    print(f"{name}: {time.perf_counter() - began_s:.0f} s", file=sys.stderr, flush=True)
    return figures


if __name__ == "__main__":
    sys.exit(main())
