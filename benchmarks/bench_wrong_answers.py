"""Count the calls that get another call's answer from a server that violates HTTP/1.1 in every way we know.

``python benchmarks/bench_wrong_answers.py [--exchanges 10000] [--seed 1] [--transport NAME]...``. Each request carries
a nonce, each answer the nonce of the request that it is for. Two in five answers misbehave; 24 calls are in flight at
once over pooled connections. Exit code 1: an answer went to the wrong call.

The second figure covers unrequested answers that may cross the next request on its way, over reused connections:
HTTP/1.1 gives a client no means to distinguish them from the answer. The third is the same with
``reuse_connections = false``, and must be 0 again.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
sys.path += [str(TESTS), str(TESTS / "contract")]

from transport_cases import NAMES  # noqa: E402 - the contract kit is found by the path above
from wrong_answers import measure  # noqa: E402 - as above


def main() -> int:
    """Measure; return the exit code."""
    parser = argparse.ArgumentParser(description="Count the calls that get another call's answer.")
    parser.add_argument("--exchanges", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--transport", action="append", choices=NAMES)
    given = parser.parse_args()
    logging.disable(logging.WARNING)  # urllib3 has something to say about every second answer
    wrong = 0
    for name in given.transport or NAMES:
        wrong += _run(name, given.exchanges, given.seed, timed=False, reuse=True)
        _run(name, given.exchanges, given.seed, timed=True, reuse=True)
        wrong += _run(name, given.exchanges, given.seed, timed=True, reuse=False)
    return 1 if wrong else 0


def _run(name: str, exchanges: int, seed: int, *, timed: bool, reuse: bool) -> int:
    began_s = time.monotonic()
    tally = measure(name, exchanges, seed, timed=timed, reuse=reuse)
    took_s = time.monotonic() - began_s
    what = "answers to nobody" if timed else "misbehaving server"
    what += "" if reuse else ", no reuse"
    failed = ", ".join(f"{count} {kind}" for kind, count in tally.failed.most_common())
    print(
        f"{name:10} {what:27} {tally.exchanges:6} exchanges: {tally.wrong.total()} wrong, {tally.right} right, "
        f"{tally.failed.total()} failed ({failed or 'none'}), {tally.unsent} said to be unsent; "
        f"{tally.connections} connections, {took_s:.0f} s"
    )
    for case, count in tally.wrong.most_common(5):
        print(f"           wrong: {count} x {case}")
    return tally.wrong.total()


if __name__ == "__main__":
    sys.exit(main())
