"""Deadlines of a chunk's jobs, where the lane can start no call and so never looks at them."""

from __future__ import annotations

import asyncio
from itertools import count
from types import SimpleNamespace
from typing import Any, cast

import pytest

from callmill.jobs.traffic import NORMAL
from callmill.jobs.wire import Chunk, WireJob
from callmill.ledger import ChunkRef, Claim, Finish
from callmill.workers.chunk_run import ChunkRun

NOW_MS = 1_000_000
PATIENCE_S = 5


async def errors_of(deadlines_ms: list[int | None], batch_ms: int | None, *, left: int) -> list[str | None]:
    """Run a chunk on a lane that starts nothing; return what its jobs failed of when so many are left."""
    claim = Claim(
        ref=ChunkRef("b", 0, "api"), fence=1, payload=b"", recorded=frozenset(), attempts={}, not_before_ms={},
        claims=0, now_ms=NOW_MS, count=len(deadlines_ms), deadline_ms=batch_ms,
    )  # fmt: skip
    jobs = [WireJob("GET", "/", deadline_ms=ms) for ms in deadlines_ms]
    lane = SimpleNamespace(add=lambda *_, **__: None, forget=lambda *_: None)
    finished: list[Finish] = []
    recorder = SimpleNamespace(changed=lambda *_: None, finished=lambda _run, finish: finished.append(finish))
    run = ChunkRun(
        claim,
        Chunk("api", 0, jobs),
        cast("Any", lane),
        cast("Any", recorder),
        traffic=NORMAL,
        lease_ends_s=float("inf"),
    )
    run.begin()
    async with asyncio.timeout(PATIENCE_S):
        while run.put_back > left:  # noqa: ASYNC110 - a chunk tells what is left of it to those who ask
            await asyncio.sleep(0.01)
    failed = {outcome.index: outcome.error_code for _, outcome in run.bundle.outcomes}
    assert bool(finished) == (len(failed) == len(jobs))
    run.close()
    return [failed.get(index) for index in range(len(jobs))]


@pytest.mark.parametrize(
    ("deadlines_ms", "batch_ms", "errors"),
    [
        ([None, None], NOW_MS - 1, ["deadline", "deadline"]),  # taken in when it was over
        ([NOW_MS - 1, None, NOW_MS + 3_600_000], None, ["deadline", None, None]),
        ([NOW_MS + 50, None, NOW_MS - 1], None, ["deadline", None, "deadline"]),
        ([None, None], NOW_MS + 50, ["deadline", "deadline"]),
        ([None], None, [None]),
    ],
)
def test_jobs_fail_when_their_deadline_comes_or_has_come(deadlines_ms, batch_ms, errors):
    """Jobs that are too late when their chunk is taken in fail at once, the others when their time comes."""
    assert asyncio.run(errors_of(deadlines_ms, batch_ms, left=errors.count(None))) == errors


def test_a_deadline_between_two_readings_of_the_clock_is_looked_after():
    """A timer is set for a deadline that was ahead when the jobs were looked at, however long the look takes."""

    async def scenario() -> list[float]:
        claim = Claim(
            ref=ChunkRef("b", 0, "api"), fence=1, payload=b"", recorded=frozenset(), attempts={}, not_before_ms={},
            claims=0, now_ms=NOW_MS, count=1, deadline_ms=NOW_MS + 1_500,
        )  # fmt: skip
        lane = SimpleNamespace(add=lambda *_, **__: None, forget=lambda *_: None)
        chunk = Chunk("api", 0, [WireJob("GET", "/")])
        run = ChunkRun(claim, chunk, cast("Any", lane), cast("Any", None), traffic=NORMAL, lease_ends_s=float("inf"))
        began_s, timers = run._began_s, []
        seconds = count(began_s)  # every reading of the clock is a second later than the one before
        clock = SimpleNamespace(time=lambda: next(seconds), call_at=lambda when, _: timers.append(when - began_s))
        run._loop = cast("Any", clock)
        run.begin()
        return timers

    assert pytest.approx(1.5, abs=0.1) in asyncio.run(scenario())
