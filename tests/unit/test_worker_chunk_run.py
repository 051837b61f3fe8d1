"""What a chunk that a worker holds does with its calls, and what it gives back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

import pytest
from virtual_time import VirtualLoop

from callmill.jobs.traffic import NORMAL
from callmill.jobs.wire import Chunk, WireJob
from callmill.ledger import Bundle, ChunkRef, Claim, Finish
from callmill.workers.call import Call
from callmill.workers.chunk_run import ChunkRun

NOW_MS = 1_000_000
LEASE_S = 600.0


class NotingLane:
    """A lane that starts nothing, and notes what it is told."""

    def __init__(self) -> None:
        self.line: list[Call] = []
        self.forgot = 0

    def add(self, _owner: Any, calls: Sequence[Call], *, first: int = 0) -> None:  # noqa: ARG002 - the port's signature
        """Take calls in."""
        self.line += calls

    def add_first(self, call: Call) -> None:
        """Take a call in that has waited already."""
        self.line.append(call)

    def forget(self, _owner: Any) -> None:
        """Drop what waits."""
        self.forgot += 1
        self.line.clear()

    def will_retry(self, call: Call, *, wanted: bool) -> None:
        """Take note."""

    def retry_wait_s(self, _call: Call) -> float:
        """Let every call go on at once."""
        return 0.0


class Held:
    """A chunk in a worker's hands."""

    def __init__(self, *, jobs: int = 1, **claimed: Any) -> None:
        self.lane = NotingLane()
        self.finishes: list[Finish] = []
        claim = Claim(
            **{
                "ref": ChunkRef("b", 0, "api"), "fence": 1, "payload": b"", "recorded": frozenset(), "attempts": {},
                "not_before_ms": {}, "claims": 0, "now_ms": NOW_MS, "count": jobs, **claimed,
            }
        )  # fmt: skip
        chunk = Chunk("api", 0, [WireJob("GET", "/")] * jobs)
        self.run = ChunkRun(claim, chunk, cast("Any", self.lane), cast("Any", self), traffic=NORMAL)
        self.lease_lasts(LEASE_S)

    def lease_lasts(self, seconds: float) -> None:
        """Renew the lease: it ends in so many seconds."""
        self.run.lease_ends_s = now_s() + seconds

    def changed(self, run: ChunkRun, size_bytes: int = 0) -> None:
        """Do nothing."""

    def finished(self, _run: ChunkRun, finish: Finish) -> None:
        """Keep how it was given up."""
        self.finishes.append(finish)

    def begun(self) -> Held:
        """Begin."""
        self.run.begin()
        return self

    def start(self) -> Call:
        """Start the call that is next."""
        call = self.lane.line.pop(0)
        assert self.run.may_start(call, now_s())
        self.run.started(call)
        return call

    @property
    def bundle(self) -> Bundle:
        """What there is to record."""
        return self.run.bundle

    @property
    def finish(self) -> Finish:
        """How it was given up."""
        (finish,) = self.finishes
        return finish


def now_s() -> float:
    """Return the loop's time."""
    return asyncio.get_running_loop().time()


def play(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario on a clock that jumps to what happens next."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(scenario())


def test_no_call_starts_once_the_lease_has_ended():
    """Until its lease ends a chunk lets calls start; from then on none, and it is given back, whatever comes later."""

    async def scenario() -> None:
        held = Held(jobs=2).begun()
        call = held.lane.line[0]
        assert held.run.may_start(call, now_s() + LEASE_S - 0.001)
        assert not held.finishes
        assert not held.run.may_start(call, now_s() + LEASE_S)
        assert (held.lane.forgot, held.run.put_back, len(held.finishes)) == (1, 2, 1)
        held.lease_lasts(2 * LEASE_S)
        assert not held.run.may_start(call, now_s())

    play(scenario)


def test_a_renewed_lease_lets_calls_go_on():
    """After a renewal calls start until the new end of the lease."""

    async def scenario() -> None:
        held = Held().begun()
        held.lease_lasts(2 * LEASE_S)
        assert held.run.may_start(held.lane.line[0], now_s() + 2 * LEASE_S - 0.001)

    play(scenario)


@pytest.mark.parametrize("earlier", [0, 2])
def test_an_interrupted_attempt_counts(earlier):
    """What the API made of an attempt that was cut off is unknown: it counts as a call, and as an attempt spent."""

    async def scenario() -> None:
        held = Held(attempts={0: earlier} if earlier else {}).begun()
        call = held.start()
        held.run.close()
        assert not held.finishes
        held.run.interrupted(call)
        assert (held.bundle.calls, held.bundle.retries, held.finish.attempts) == (1, 0, {0: earlier + 1})
        assert (held.run.put_back, held.bundle.outcomes) == (1, [])

    play(scenario)
