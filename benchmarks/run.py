"""Measure Callmill against its baselines, in one run, and print one table.

``python benchmarks/run.py [--quick] [--only NAME]...``. What a figure means: docs/benchmarks.md. Exit code 1: something
could not be measured. A bound that is missed is a line in the table, no error: machines differ.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import msgspec
import report
from api_server import nginx_program
from figure import Figure
from figures import (
    day,
    enqueue,
    idle,
    isolation,
    kills,
    limit,
    paced,
    producer_memory,
    redis_memory,
    scaling,
    single_call,
    start,
    waiting,
    worker_cpu,
    worker_memory,
)
from machine import Watch
from scale import FULL, QUICK, Scale

BENCHMARKS: dict[str, Callable[[Scale], list[Figure]]] = {
    "worker-cpu": worker_cpu.measure,
    "paced": paced.measure,
    "waiting": waiting.measure,
    "enqueue": enqueue.measure,
    "redis-memory": redis_memory.measure,
    "producer-memory": producer_memory.measure,
    "single-call": single_call.measure,
    "limit": limit.measure,
    "kills": kills.measure,
    "isolation": isolation.measure,
    "worker-memory": worker_memory.measure,
    "day": day.measure,
    "scaling": scaling.measure,
    "idle": idle.measure,
    "start": start.measure,
}
RESULTS = Path(__file__).with_name("results.json")


def main() -> int:
    """Run what was asked for; return the exit code."""
    parser = argparse.ArgumentParser(description="Measure Callmill against its baselines.")
    parser.add_argument("--quick", action="store_true", help="small counts: shows that it works, figures are rough")
    parser.add_argument("--only", action="append", choices=BENCHMARKS, metavar="NAME", help=", ".join(BENCHMARKS))
    given = parser.parse_args()
    nginx_program()
    # As Ctrl-C does: what was started is ended on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for name in [name for name in os.environ if name.startswith("CALLMILL_")]:
        del os.environ[name]  # the user's own installation must neither be measured nor touched
    names = given.only or list(BENCHMARKS)
    measured = {name: _measured(name, QUICK if given.quick else FULL) for name in names}
    done = {name: figures for name, figures in measured.items() if figures is not None}
    report.write(RESULTS, done, "quick" if given.quick else "full")
    print(report.table([figure for figures in done.values() for figure in figures]))
    return 0 if len(done) == len(measured) else 1


def _measured(name: str, scale: Scale) -> list[Figure] | None:
    began_s = time.perf_counter()
    print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
    try:
        with Watch() as watch:
            figures = BENCHMARKS[name](scale)
    except Exception:  # noqa: BLE001 - one that cannot be measured must not cost the others
        print("FAILED", file=sys.stderr)
        traceback.print_exc()
        return None
    print(f"{time.perf_counter() - began_s:.0f} s", file=sys.stderr, flush=True)
    return [msgspec.structs.replace(figure, load=watch.load) for figure in figures]


if __name__ == "__main__":
    sys.exit(main())
