"""How a worker executes the chunks that it has claimed."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import msgspec
import pytest

from callmill.jobs.line import Line
from callmill.jobs.wire import Chunk, WireJob, encode_chunk
from callmill.ledger import ChunkRef, Claim
from callmill.workers.chunk_run import ChunkRun
from callmill.workers.execution import Execution
from callmill.workers.newer_batches import NewerBatches


def nothing(*_: object, **__: object) -> None:
    """Do nothing."""


@pytest.fixture
def idle_lane():
    """A lane that never starts a call."""
    return SimpleNamespace(add=nothing, forget=nothing)


def test_a_chunk_that_is_claimed_again_here_runs_once(idle_lane):
    """Where a lease is lost and the same process claims the chunk again, the first run ends and the second is held."""

    async def scenario() -> None:
        runs: dict[ChunkRef, ChunkRun] = {}
        ended: list[ChunkRun] = []

        def finished(run: ChunkRun, _: object) -> None:
            ended.append(run)
            run.recorded()

        room = SimpleNamespace(taken_in=nothing, filled=nothing, hold=nothing, resume=nothing)
        execution = Execution(
            None, {"api": idle_lane}, SimpleNamespace(finished=finished), room, runs, lease_s=10, newer=NewerBatches()
        )
        ref = ChunkRef("b", 0, "api")
        first = Claim(
            ref=ref, fence=1, payload=encode_chunk(Chunk("api", 0, [WireJob("GET", "/")])), recorded=frozenset(),
            attempts={}, not_before_ms={}, claims=0, now_ms=0, count=1,
        )  # fmt: skip
        again = msgspec.structs.replace(first, fence=2)
        tasks = []
        for claim in (first, again):
            tasks.append(asyncio.ensure_future(execution.execute(claim, Line("api"), time.monotonic())))
            await asyncio.sleep(0)
        assert await tasks[0] == "0 ok, 0 failed, 1 put back"
        assert runs[ref].claim is again
        execution.drain()
        assert await tasks[1] == "0 ok, 0 failed, 1 put back"
        assert (runs, [run.claim for run in ended]) == ({}, [again])

    asyncio.run(scenario())
