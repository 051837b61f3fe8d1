"""What a worker keeps of outcomes that cannot be recorded yet."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from callmill.errors import CallmillError, RedisFullError
from callmill.jobs.wire import WireOutcome
from callmill.ledger import Bundle, CommitResult, Finish
from callmill.workers import committer as module
from callmill.workers.committer import Committer

KIB = 1024
WAIT_S = 10


class FakeLedger:
    """Takes commits, or refuses all of them while it is full, or bundles with certain offsets."""

    def __init__(self) -> None:
        self.full = False
        self.refused: frozenset[int] = frozenset()
        self.taken: list[tuple[Any, Bundle, Finish | None]] = []

    async def commit_all(self, commits: Sequence[Any]) -> list[CommitResult | CallmillError]:
        """Take or refuse."""
        await asyncio.sleep(0)
        return [self._commit(commit) for commit in commits]

    def _commit(self, commit: Any) -> CommitResult | CallmillError:
        if self.full or self.refused & set(offsets(commit)):
            return RedisFullError("full")
        self.taken.append(commit)
        return CommitResult(hint_wanted=False, proceed=True)


def offsets(commit: Any) -> list[int]:
    """Return the offsets of the outcomes in a commit."""
    return [offset for offset, _ in commit[1].outcomes]


class FakeRun:
    """A chunk's part that the committer sees."""

    def __init__(self) -> None:
        self.bundle = Bundle()
        self.claim = self.ref = self
        self.api = "api"
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(self, committer: Committer, index: int, size_bytes: int) -> None:
        """Take an outcome in, as a chunk does."""
        self.bundle.add(index, WireOutcome(index, None, 200, bytes(size_bytes), {}, None, None, 1, 0, 1))
        self.bundle.calls += 1
        committer.changed(self, size_bytes)  # type: ignore[arg-type]

    def take_bundle(self, most_bytes: int) -> Bundle:
        """Hand out what is to be recorded."""
        return self.bundle.take(most_bytes)

    def recorded(self) -> None:
        """End."""
        self.over.set_result(None)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(module, "_MOST_WAITING_BYTES", 64 * KIB)
    monkeypatch.setattr(module, "_MOST_AT_ONCE_BYTES", 32 * KIB)
    monkeypatch.setattr(module, "_MOST_IN_BUNDLE_BYTES", 16 * KIB)
    monkeypatch.setattr(module, "EVERY_S", 0.001)


async def _opened(scenario: Any) -> None:
    ledger, flows, told = FakeLedger(), [], asyncio.Event()

    def on_flow(flow: bool) -> None:  # noqa: FBT001 - the committer's callback
        flows.append(flow)
        told.set()

    committer = Committer(ledger, lambda _: None, on_flow, lambda *_: None)  # type: ignore[arg-type]
    task = asyncio.create_task(committer.run())
    try:
        await asyncio.wait_for(
            scenario(SimpleNamespace(ledger=ledger, flows=flows, told=told, committer=committer)), WAIT_S
        )
    finally:
        task.cancel()


def test_large_outcomes_go_out_in_pieces_and_the_end_last():
    """A bundle beyond a size is split: in order, nothing twice or lost, counts once, and the chunk's end at the end."""

    async def scenario(site: Any) -> None:
        run = FakeRun()
        for index in range(12):
            run.take(site.committer, index, 5 * KIB)
        site.committer.finished(run, Finish())
        await run.over
        bundles = [bundle for _, bundle, _ in site.ledger.taken]
        assert [at for bundle in bundles for at, _ in bundle.outcomes] == list(range(12))
        assert max(bundle.size_bytes for bundle in bundles) <= 16 * KIB
        assert sum(bundle.calls for bundle in bundles) == 12
        assert [finish is not None for _, _, finish in site.ledger.taken] == [False] * (len(bundles) - 1) + [True]
        await site.committer.idle()

    asyncio.run(_opened(scenario))


def test_outcome_larger_than_a_piece_goes_out_alone():
    """One outcome above the size of a piece is no reason to wait for ever."""

    async def scenario(site: Any) -> None:
        run = FakeRun()
        for index in range(3):
            run.take(site.committer, index, 20 * KIB)
        await site.committer.idle()
        assert [len(bundle.outcomes) for _, bundle, _ in site.ledger.taken] == [1, 1, 1]

    asyncio.run(_opened(scenario))


def test_calls_stop_while_too_much_waits_to_be_recorded():
    """Bodies beyond the bound stop the flow at once, whether Redis has refused yet or not; recorded, it goes on."""

    async def scenario(site: Any) -> None:
        run = FakeRun()
        for index in range(4):
            run.take(site.committer, index, 20 * KIB)
            assert site.flows == ([False] if index == 3 else [])
        await site.committer.idle()
        assert site.flows == [False, True]

    asyncio.run(_opened(scenario))


def test_refused_outcomes_are_kept_and_sent_again():
    """While Redis is full the flow is stopped and everything kept; with room all of it is recorded once."""

    async def scenario(site: Any) -> None:
        site.ledger.full = True
        run = FakeRun()
        run.take(site.committer, 0, KIB)
        await site.told.wait()
        run.take(site.committer, 1, KIB)
        site.ledger.full = False
        await site.committer.idle()
        assert site.flows == [False, True]
        assert [at for _, bundle, _ in site.ledger.taken for at, _ in bundle.outcomes] == [0, 1]

    asyncio.run(_opened(scenario))


def test_nothing_of_a_chunk_overtakes_what_was_refused():
    """While a bundle is refused, nothing newer of its chunk goes out, its end neither; other chunks go on."""

    async def scenario(site: Any) -> None:
        site.ledger.refused = frozenset({0})
        run, other = FakeRun(), FakeRun()
        run.take(site.committer, 0, KIB)
        await site.told.wait()
        run.take(site.committer, 1, KIB)
        site.committer.finished(run, Finish())
        other.take(site.committer, 7, KIB)
        site.committer.finished(other, Finish())
        await other.over
        assert [offsets(commit) for commit in site.ledger.taken] == [[7]]
        site.ledger.refused = frozenset()
        await run.over
        assert [(offsets(commit), commit[2] is not None) for commit in site.ledger.taken[1:]] == [
            ([0], False),
            ([1], True),
        ]

    asyncio.run(_opened(scenario))
