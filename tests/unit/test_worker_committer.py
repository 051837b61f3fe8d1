"""What a worker keeps of outcomes that cannot be recorded yet."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from virtual_time import VirtualLoop

from callmill.errors import CallmillError, RedisFullError, RedisUnavailableError, StaleLeaseError
from callmill.jobs.wire import WireOutcome
from callmill.ledger import Bundle, CommitResult, Finish
from callmill.workers import committer as module
from callmill.workers.committer import Committer

KIB = 1024
WAIT_S = 60


class FakeLedger:
    """Takes commits, or refuses all of them while it is full, or bundles with certain offsets."""

    def __init__(self) -> None:
        self.full = self.away = False
        self.refused: frozenset[int] = frozenset()
        self.result = CommitResult(hint_wanted=False, proceed=True)
        self.stale: set[Any] = set()
        self.meanwhile: Callable[[], object] = bool
        self.rounds: list[int] = []
        self.rounds_at_s: list[float] = []
        self.taken: list[tuple[Any, Bundle, Finish | None]] = []

    async def commit_all(self, commits: Sequence[Any]) -> list[CommitResult | CallmillError]:
        """Take or refuse."""
        await asyncio.sleep(0)
        self.rounds.append(len(commits))
        self.rounds_at_s.append(asyncio.get_running_loop().time())
        self.meanwhile()
        if self.away:
            raise RedisUnavailableError("away")
        return [self._commit(commit) for commit in commits]

    def _commit(self, commit: Any) -> CommitResult | CallmillError:
        if self.full or self.refused & set(offsets(commit)):
            return RedisFullError("full")
        if commit[0] in self.stale:
            return StaleLeaseError("stale")
        self.taken.append(commit)
        return self.result


def offsets(commit: Any) -> list[int]:
    """Return the offsets of the outcomes in a commit."""
    return [offset for offset, _ in commit[1].outcomes]


class FakeRun:
    """A chunk's part that the committer sees."""

    def __init__(self) -> None:
        self.bundle = Bundle()
        self.claim = self.ref = self
        self.batch_id, self.number, self.api, self.line, self.batch_name = "b", 0, "api", "api", ""
        self.closed = False
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def close(self) -> None:
        """Start no further calls."""
        self.closed = True

    def abandon(self) -> None:
        """Forget the chunk."""
        self.over.set_result(None)

    def take(self, committer: Committer, index: int, size_bytes: int) -> None:
        """Take an outcome in, as a chunk does."""
        self.bundle.add(index, WireOutcome(index, None, 200, bytes(size_bytes), {}, None, None, 1, 0, 1))
        self.bundle.calls += 1
        committer.changed(self, size_bytes)  # type: ignore[arg-type]

    def take_bundle(self, most_bytes: int) -> Bundle:
        """Hand out what is to be recorded."""
        return self.bundle.take(most_bytes)

    def recorded(self) -> None:
        """End, unless it has."""
        if not self.over.done():
            self.over.set_result(None)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(module, "_MOST_WAITING_BYTES", 64 * KIB)
    monkeypatch.setattr(module, "_MOST_AT_ONCE_BYTES", 32 * KIB)
    monkeypatch.setattr(module, "_MOST_IN_BUNDLE_BYTES", 16 * KIB)
    monkeypatch.setattr(module, "EVERY_S", 0.001)


async def _opened(scenario: Any) -> None:
    ledger, flows, told = FakeLedger(), [], asyncio.Event()
    published: list[list[Any]] = []
    recorded: list[tuple[str, Bundle]] = []

    def on_flow(flow: bool) -> None:  # noqa: FBT001 - the committer's callback
        flows.append(flow)
        told.set()

    committer = Committer(ledger, published.append, on_flow, lambda *what: recorded.append(what))  # type: ignore[arg-type]
    task = asyncio.create_task(committer.run())
    try:
        await asyncio.wait_for(
            scenario(
                SimpleNamespace(
                    ledger=ledger, flows=flows, told=told, committer=committer, published=published, recorded=recorded
                )
            ),
            WAIT_S,
        )
    finally:
        task.cancel()


def play(scenario: Any) -> None:
    """Run a scenario on a clock that jumps to what happens next."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(_opened(scenario))


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

    play(scenario)


def test_outcome_larger_than_a_piece_goes_out_alone():
    """One outcome above the size of a piece is no reason to wait for ever."""

    async def scenario(site: Any) -> None:
        run = FakeRun()
        for index in range(3):
            run.take(site.committer, index, 20 * KIB)
        await site.committer.idle()
        assert [len(bundle.outcomes) for _, bundle, _ in site.ledger.taken] == [1, 1, 1]

    play(scenario)


def test_calls_stop_while_too_much_waits_to_be_recorded():
    """Bodies beyond the bound stop the flow at once, whether Redis has refused yet or not; recorded, it goes on."""

    async def scenario(site: Any) -> None:
        run = FakeRun()
        for index in range(4):
            run.take(site.committer, index, 20 * KIB)
            assert site.flows == ([False] if index == 3 else [])
        await site.committer.idle()
        assert site.flows == [False, True]

    play(scenario)


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

    play(scenario)


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

    play(scenario)


def test_everything_waits_while_redis_is_away():
    """What could not be sent is sent again as it was, without company from its chunk, and recorded once."""

    async def scenario(site: Any) -> None:
        site.ledger.away = True
        run, other = FakeRun(), FakeRun()
        run.take(site.committer, 0, KIB)
        await site.told.wait()
        run.take(site.committer, 1, KIB)
        other.take(site.committer, 5, KIB)
        assert not site.recorded
        site.ledger.away = False
        await site.committer.idle()
        assert [offsets(commit) for commit in site.ledger.taken] == [[0], [5], [1]]
        assert [(api, bundle.calls) for api, bundle in site.recorded] == [("api", 1)] * 3
        assert site.flows == [False, True]

    play(scenario)


def test_a_chunk_whose_lease_is_lost_is_forgotten_with_what_came_since():
    """Where somebody else holds a chunk it is over here: nothing of it is recorded, and what came since is dropped."""

    async def scenario(site: Any) -> None:
        run = FakeRun()
        site.ledger.stale = {run}
        run.take(site.committer, 0, KIB)
        site.committer.finished(run, Finish())
        await run.over
        rounds = len(site.ledger.rounds)
        run.take(site.committer, 1, KIB)
        await site.committer.idle()
        assert (site.ledger.taken, site.recorded, site.published, site.flows) == ([], [], [], [])
        assert (len(site.ledger.rounds), bool(run.bundle), run.closed) == (rounds, False, False)

    play(scenario)


@pytest.mark.parametrize(
    ("proceed", "ends", "closed"), [(True, False, False), (False, False, True), (False, True, False)]
)
def test_a_batch_that_was_paused_starts_no_further_calls(proceed, ends, closed):
    """Where the ledger says that the batch does not go on, the chunk is closed, unless it was given up with that."""

    async def scenario(site: Any) -> None:
        site.ledger.result = CommitResult(hint_wanted=False, proceed=proceed)
        run = FakeRun()
        run.take(site.committer, 0, KIB)
        if ends:
            site.committer.finished(run, Finish())
        await site.committer.idle()
        assert (run.closed, run.over.done(), site.published) == (closed, ends, [])

    play(scenario)


def test_a_chunk_that_is_queued_again_gets_its_hint():
    """When the ledger queues a chunk that was given up, its hint is published; until then the committer is not idle."""

    async def scenario(site: Any) -> None:
        site.ledger.result = CommitResult(hint_wanted=True, proceed=True)
        run = FakeRun()
        site.committer.finished(run, Finish())
        await site.committer.idle()
        assert run.over.done()
        assert (site.published, [offsets(commit) for commit in site.ledger.taken]) == ([[run]], [[]])

    play(scenario)


def test_nothing_is_sent_of_a_chunk_that_has_nothing_new():
    """A chunk that was changed by what an earlier round took along costs no commit."""

    async def scenario(site: Any) -> None:
        run = FakeRun()
        site.committer.changed(run)
        await site.committer.idle()
        assert site.ledger.rounds == []

    play(scenario)


def test_outcomes_wait_for_company(monkeypatch):
    """Outcomes that come soon after a round go out together; a chunk that ends takes along none of the others."""
    monkeypatch.setattr(module, "EVERY_S", 0.1)

    async def scenario(site: Any) -> None:
        first, second, third = FakeRun(), FakeRun(), FakeRun()
        first.take(site.committer, 0, KIB)
        await site.committer.idle()
        first.take(site.committer, 1, KIB)
        await asyncio.sleep(0)
        second.take(site.committer, 0, KIB)
        third.take(site.committer, 9, KIB)
        site.committer.finished(third, Finish())
        await third.over
        first.take(site.committer, 2, KIB)
        await site.committer.idle()
        assert [offsets(commit) for commit in site.ledger.taken] == [[0], [9], [1, 2], [0]]
        assert site.ledger.rounds == [1, 1, 2]

    play(scenario)


def test_many_outcomes_wait_half_as_long(monkeypatch):
    """After a round of many outcomes the next one comes sooner, so that a kill -9 finds fewer of them waiting."""
    monkeypatch.setattr(module, "EVERY_S", 0.1)

    async def rounds_in_a_second(site: Any, at_once: int) -> int:
        run, before = FakeRun(), len(site.ledger.rounds)
        for turn in range(100):
            for number in range(at_once):
                run.take(site.committer, turn * at_once + number, 1)
            await asyncio.sleep(0.01)
        return len(site.ledger.rounds) - before

    async def scenario(site: Any) -> None:
        assert 10 <= await rounds_in_a_second(site, 1) <= 12
        assert 19 <= await rounds_in_a_second(site, module.MANY) <= 22

    play(scenario)


def test_one_round_trip_is_bounded():
    """Large outcomes of several chunks go out in several round trips, each of little more than the bound."""

    async def scenario(site: Any) -> None:
        runs = [FakeRun() for _ in range(5)]
        for run in runs:
            run.take(site.committer, 0, 12 * KIB)
        await site.committer.idle()
        assert site.ledger.rounds == [3, 2]
        assert site.flows == []

    play(scenario)


def test_what_is_given_up_is_not_sent_again():
    """A worker that must end keeps nothing for a Redis that is away: it is idle after the round under way."""

    async def scenario(site: Any) -> None:
        site.ledger.away = True
        run = FakeRun()
        run.take(site.committer, 0, KIB)
        await site.told.wait()
        site.committer.give_up()
        await site.committer.idle()
        rounds = len(site.ledger.rounds)
        run.take(site.committer, 1, KIB)
        await site.committer.idle()
        assert (len(site.ledger.rounds), site.ledger.taken, site.recorded) == (rounds + 1, [], [])

    play(scenario)


def test_redis_is_asked_ever_more_seldom_while_it_is_away():
    """What waits is sent again after 0.1 s, then after twice as long each time, 2 s at most; after a success anew."""

    async def scenario(site: Any) -> None:
        run = FakeRun()
        for _ in range(2):
            site.ledger.away = True
            site.ledger.rounds_at_s.clear()
            run.take(site.committer, 0, KIB)
            await asyncio.sleep(9)
            site.ledger.away = False
            await site.committer.idle()
            at_s = site.ledger.rounds_at_s
            waits_s = [later - earlier for earlier, later in itertools.pairwise(at_s)]
            assert waits_s == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0])

    play(scenario)


def test_an_end_that_came_while_outcomes_were_refused_is_not_forgotten():
    """A chunk that ends while its last bundle is refused is given up once that is recorded, whatever else comes."""

    async def scenario(site: Any) -> None:
        site.ledger.full = True
        run = FakeRun()
        run.take(site.committer, 0, KIB)
        await site.told.wait()
        site.committer.finished(run, Finish())
        site.ledger.full = False
        await site.committer.idle()
        assert run.over.done()
        assert [(offsets(commit), commit[2] is not None) for commit in site.ledger.taken] == [([0], False), ([], True)]

    play(scenario)


def test_a_chunk_that_is_abandoned_while_it_is_given_up_harms_nobody():
    """Where a chunk is over before the answer to its end comes, the answer changes nothing, and others are recorded."""

    async def scenario(site: Any) -> None:
        run, other = FakeRun(), FakeRun()
        site.ledger.meanwhile = lambda: run.over.done() or run.abandon()
        site.committer.finished(run, Finish())
        await site.committer.idle()
        other.take(site.committer, 3, KIB)
        site.committer.finished(other, Finish())
        await other.over
        assert [offsets(commit) for commit in site.ledger.taken] == [[], [3]]

    play(scenario)
