"""Fuzz tests: a few hundred examples in the ordinary run, and on request as many as fit into some minutes.

``make fuzz`` gives every fuzz test ``CALLMILL_FUZZ_S`` seconds, with seeds that differ from run to run.
"""

from __future__ import annotations

import functools
import os
import random
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from hypothesis import given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

FUZZ_S = float(os.environ.get("CALLMILL_FUZZ_S", "0"))
"""Seconds for each fuzz test; 0: only as many examples as its decorator says."""

IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - its folders have names of their own
"""Where files are that are made thousands of times: a busy disk takes seconds to sync one, which is no hang of ours."""

_HANGS_AFTER = timedelta(seconds=1)
_EXAMPLES_A_ROUND = 2_000


def fuzz(*strategies: SearchStrategy[Any], examples: int = 100) -> Callable[[Callable[..., None]], Callable[[], None]]:
    """Return a decorator that calls a test function with drawn values; an example of more than a second fails."""

    def decorate(test: Callable[..., None]) -> Callable[[], None]:
        # A wrapper without the signature of the test: pytest would take its parameters for fixtures.
        def run() -> None:
            if not FUZZ_S:
                settings(max_examples=examples)(given(*strategies)(test))()
                return
            ends_s = time.monotonic() + FUZZ_S
            total = 0
            while time.monotonic() < ends_s:
                total += _one_round(test, strategies)
            print(f"{test.__name__}: {total:,} examples in {FUZZ_S:.0f} s")  # noqa: T201 - a figure that is asked for

        functools.update_wrapper(run, test, assigned=("__module__", "__name__", "__qualname__", "__doc__"))
        del run.__wrapped__  # type: ignore[attr-defined] # pytest would follow it to the parameters
        return run

    return decorate


def _one_round(test: Callable[..., None], strategies: tuple[SearchStrategy[Any], ...]) -> int:
    tried = 0

    def counted(values: tuple[Any, ...]) -> None:
        nonlocal tried
        tried += 1
        test(*values)

    limits = settings(max_examples=_EXAMPLES_A_ROUND, deadline=_HANGS_AFTER, database=None)
    seed(random.randrange(2**63))(limits(given(st.tuples(*strategies))(counted)))()
    return tried
