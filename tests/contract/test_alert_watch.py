"""What is noted to be told, against a real Redis, the watch driven step by step on a clock of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
from alerts_site import MINUTE_MS, Hook, Site, runner, webhook

from callmill.jobs.wire import WireOutcome
from callmill.ledger import Bundle, Claim, Finish, keys
from callmill.ledger.alert_log import AlertLog
from callmill.workers.alert_conditions import RULES, Kind, advance


@pytest.fixture
def hook() -> Iterator[Hook]:
    """Run a webhook."""
    with webhook() as made:
        yield made


@pytest.fixture
def run(redis_url, hook) -> Callable[[Callable], None]:
    """Run a coroutine function on a site of its own."""
    return runner(redis_url, hook)


PAUSED = {"paused_s": 60.0, "pause_reason": "429 Too Many Requests"}


def test_pause_is_told_when_it_lasts_and_so_is_its_end(run, hook):
    """A pause of a moment is nobody's business; one that lasts is told once, and its end once."""

    async def test(site: Site) -> None:
        await site.look(**PAUSED)
        await site.look()
        await site.look(10)
        assert await site.told() == []
        for _ in range(5):
            await site.look(**PAUSED)
        assert await site.told() == ["lane_paused"]
        for _ in range(8):
            await site.look()
        assert await site.told() == ["lane_paused", "lane_resumed"]
        await site.sender.send_waiting()
        first, last = hook.posts
        assert (first["api"], last["api"], first["reason"]) == ("api", "api", "for 60 s: 429 Too Many Requests")
        assert first["text"] == "Callmill: `api` is paused for 60 s: 429 Too Many Requests"
        assert last["lasted_s"] >= 5
        assert first["id"] != last["id"]

    run(test)


def test_flapping_is_told_less_and_less():
    """A lane that pauses for ten seconds of every twenty, all day, is told a few times an hour and not at each turn."""
    state, told = None, []
    for second in range(86_400):
        state, tell = advance(state, RULES[Kind.LANE], holds=second % 20 < 10, now_ms=1000 * second)
        if tell:
            told.append((second, state.told))
    assert [holds for _, holds in told] == [True, False, True]
    for second in range(86_400, 86_400 + 4 * 3600):
        state, tell = advance(state, RULES[Kind.LANE], holds=False, now_ms=1000 * second)
        if tell:
            told.append((second, state.told))
    assert told[-1][1] is False
    assert state is None


def test_api_that_is_down_is_told_at_once(run):
    """An open breaker is told at the first look, half-open is no change, and closed for a while is."""

    async def test(site: Site) -> None:
        for state in ("open", "half-open", "open", "half-open"):
            await site.look(breaker=state, breaker_reason="503 Service Unavailable")
        assert await site.told() == ["api_down"]
        for _ in range(8):
            await site.look()
        assert await site.told() == ["api_down", "api_up"]

    run(test)


@pytest.mark.parametrize(
    ("failed", "event", "words"),
    [
        (0, "batch_done", "batch `night` ({id}) is done: 4 succeeded"),
        (1, "batch_failed", "batch `night` ({id}) is over: 1 failed, 3 succeeded"),
    ],
)
def test_end_of_a_batch_is_told_with_its_counts(run, hook, failed, event, words):
    """Each end of a batch is told once, with what came of it, however many workers look."""

    async def test(site: Site) -> None:
        claim = await site.submit()
        await site.record(claim, 4 - failed, failed)
        await asyncio.gather(*(site.another_watch().look() for _ in range(5)))
        assert await site.told() == [event]
        await site.sender.send_waiting()
        (post,) = hook.posts
        counts = {"total": 4, "succeeded": 4 - failed, "failed": failed}
        assert post["batch"] == {"id": claim.ref.batch_id, "name": "night", "state": "done", **counts}
        assert post["text"].startswith("Callmill: " + words.format(id=claim.ref.batch_id))

    run(test)


def test_cancelled_batch_is_told_with_the_reason(run, hook):
    """A batch that was cancelled is told as that, with why, where nobody asked for it."""

    async def test(site: Site) -> None:
        claim = await site.submit()
        await site.batches.control(claim.ref.batch_id, "cancelled", "its producer is gone")
        await site.record(claim, 1)
        await site.watch.look()
        await site.sender.send_waiting()
        assert hook.posts[0]["event"] == "batch_cancelled"
        assert hook.posts[0]["text"].endswith("was cancelled: 1 of 4 done: its producer is gone")

    run(test)


def test_batch_that_runs_again_ends_again(run):
    """A batch whose failed jobs run again is told once more when it is over, and not in between."""

    async def test(site: Site) -> None:
        claim = await site.submit()
        await site.record(claim, 3, 1)
        await site.watch.look()
        await site.batches.retry_failed(claim.ref.batch_id)
        await site.watch.look()
        again = await site.chunks.claim(claim.ref)
        assert isinstance(again, Claim)
        bundle = Bundle(outcomes=[(3, WireOutcome(3, None, 200, b"", {}, None, None, 1, 0, 1))])
        await site.chunks.commit(again, bundle, Finish())
        await site.watch.look()
        assert await site.told() == ["batch_failed", "batch_done"]

    run(test)


def test_single_calls_are_not_told(run):
    """client.call is no batch to anybody; its caller waits for the outcome."""

    async def test(site: Site) -> None:
        await site.record(await site.submit("call", 1), 1)
        deleted = await site.submit("other")
        await site.record(deleted, 4)
        await site.batches.delete(deleted.ref.batch_id)
        await site.watch.look()
        assert await site.told() == []
        assert await site.redis.zcard(keys.ENDED) == 0
        assert await site.redis.zcard(keys.ACTIVE) == 0

    run(test)


def test_batch_without_outcomes_and_without_a_reason_is_stuck(run):
    """No outcome for the time that is set, and nothing to explain it: told once; and that it goes on, too."""

    async def test(site: Site) -> None:
        claim = await site.submit()
        for _ in range(9):
            await site.look(60)
        assert await site.told() == []
        for _ in range(4):
            await site.look(60)
        assert await site.told() == ["batch_stuck"]
        await site.record(claim, 1, finish=False)
        site.now_ms = await site.log.now_ms()
        await site.look()
        assert await site.told() == ["batch_stuck", "batch_goes_on"]
        assert await site.redis.hlen(keys.ALERT_STATES) == 0

    run(test)


@pytest.mark.parametrize(
    "lane",
    [
        {"paused_s": 5.0},
        {"breaker": "open"},
        {"diverted_to": "spare"},
        {"limited_by": "1/hour"},
        {"rate": 3.0},
    ],
)
def test_what_is_explained_is_not_stuck(run, lane):
    """A batch behind a pause, a breaker, a limit or others of its lane is not called stuck."""

    async def test(site: Site) -> None:
        await site.submit()
        for _ in range(20):
            await site.look(120, **lane)
        assert "batch_stuck" not in await site.told()

    run(test)


def test_batch_that_waits_for_retries_is_not_stuck(run):
    """Jobs whose next attempt is hours away explain the silence."""

    async def test(site: Site) -> None:
        claim = await site.submit()
        await site.chunks.commit(claim, Bundle(calls=4), Finish(delay_ms=3_600_000, attempts={0: 1}))
        for _ in range(20):
            await site.look(120)
        assert await site.told() == []

    run(test)


def test_paused_batch_is_not_stuck_when_it_goes_on(run):
    """A batch that was held back for an hour gets half of the time before it counts as stuck."""

    async def test(site: Site) -> None:
        claim = await site.submit()
        await site.batches.control(claim.ref.batch_id, "paused")
        for _ in range(12):
            await site.look(300)
        await site.batches.control(claim.ref.batch_id, "run")
        for _ in range(5):
            await site.look(58)
        assert await site.told() == []

    run(test)


def test_unread_outcomes_that_hold_a_batch_are_told(run):
    """A batch that is held because nobody reads its outcomes is told, and that it goes on once they are released."""

    async def test(site: Site) -> None:
        claim = await site.submit(max_unread_bytes=50)
        await site.record(claim, 1, finish=False)
        await site.look()
        assert await site.told() == ["batch_held"]
        entries = await site.redis.xrange(keys.BatchKeys(claim.ref.batch_id).outcomes)
        await site.batches.release(claim.ref.batch_id, f"{entries[-1][0].decode()}/1")
        for _ in range(4):
            await site.look()
        assert await site.told() == ["batch_held", "batch_goes_on"]

    run(test)


def test_workers_that_hold_are_told(run):
    """Redis without room, or one that would lose jobs, is told with what workers say of it."""

    async def test(site: Site) -> None:
        for _ in range(4):
            await site.report(held="Redis has 95% of its memory in use")
            site.now_ms += 1000
            await site.watch.look(site.now_ms)
        for _ in range(8):
            await site.look()
        assert await site.told() == ["memory_full", "memory_free"]

    run(test)


def test_worker_that_takes_over_goes_on_from_what_was_told(run):
    """What one worker has told, no other tells again; what one has seen begin, another one tells."""

    async def test(site: Site) -> None:
        for _ in range(6):
            site.watch = site.another_watch()
            await site.look(**PAUSED)
        for _ in range(8):
            site.watch = site.another_watch()
            await site.look()
        assert await site.told() == ["lane_paused", "lane_resumed"]

    run(test)


def test_many_batches_cost_a_look_no_more(run):
    """A look reads a bounded number of batches, and every batch has its turn."""

    async def test(site: Site) -> None:
        for number in range(120):
            await site.batches.create(f"b{number}", retention_ms=MINUTE_MS)
        asked: list[list[str]] = []
        read = AlertLog.batches

        async def counted(log: AlertLog, batch_ids: list[str]):
            asked.append(batch_ids)
            return await read(log, batch_ids)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AlertLog, "batches", counted)
            for _ in range(8):
                await site.look()
        assert max(map(len, asked)) <= 50
        assert len({batch_id for batch_ids in asked for batch_id in batch_ids}) == 120

    run(test)
