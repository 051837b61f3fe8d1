"""Alerts against a real Redis and a real HTTP server, the watch driven step by step on a clock of the test's own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest
from faulty_server import Exchange, FaultyServer, faulty_server

from callmill.config.alert_policy import AlertEvent
from callmill.config.redis_connections import connect
from callmill.jobs.wire import Chunk, WireJob, WireOutcome, encode_chunk
from callmill.ledger import Batches, Bundle, ChunkRef, Chunks, Claim, Finish, LedgerSession, alert_log, keys
from callmill.ledger.alert_log import Alert, AlertLog
from callmill.ledger.fleet import Fleet, LaneStatus, WorkerStatus
from callmill.workers import alert_sender
from callmill.workers.alert_conditions import RULES, Kind, advance
from callmill.workers.alert_sender import AlertSender, webhook_transport
from callmill.workers.alert_watch import AlertWatch

JOBS = 4
STUCK_AFTER_S = 600
MINUTE_MS = 60_000


class Hook:
    """A webhook: what it was sent, and how it answers."""

    def __init__(self, server: FaultyServer, answers: list[str]) -> None:
        self._server = server
        self.answers = answers
        """Status lines of the next answers; 200 when there are none."""

    @property
    def url(self) -> str:
        """Its address, a secret."""
        return self._server.url("/services/T0/hook-secret-1")

    @property
    def posts(self) -> list[dict]:
        """The bodies that arrived."""
        return [json.loads(exchange.body) for exchange in self._server.requests]

    @property
    def events(self) -> list[str]:
        """The events that arrived."""
        return [post["event"] for post in self.posts]


@pytest.fixture
def hook() -> Iterator[Hook]:
    """Run a webhook."""
    answers: list[str] = []

    async def answer(exchange: Exchange) -> None:
        await exchange.answer(answers.pop(0) if answers else "200 OK")

    with faulty_server(answer) as server:
        yield Hook(server, answers)


class Site:
    """A ledger, a watch on it, and senders to the webhook."""

    def __init__(self, redis_url: str, hook: Hook) -> None:
        self.redis = connect(redis_url)
        session = LedgerSession(self.redis)
        self.log, self.batches, self.fleet = AlertLog(session), Batches(session), Fleet(session)
        self.chunks = Chunks(session, worker="w")
        self.watch = self.another_watch()
        self.hook = hook
        self.transport = webhook_transport()
        self.sender = self.another_sender("w1")
        self.now_ms = 0

    def another_watch(self) -> AlertWatch:
        """Return the watch of another worker."""
        return AlertWatch(LedgerSession(self.redis), memory_watermark=0.85, stuck_after_s=STUCK_AFTER_S)

    def another_sender(self, worker: str, events: tuple[str, ...] = tuple(AlertEvent), **given) -> AlertSender:
        """Return the sender of another worker."""
        return AlertSender(self.log, [self.hook.url], events, worker=worker, transport=self.transport, **given)

    async def report(self, *, lane: dict | None = None, **status) -> None:
        """Let a worker say what its lane for the API does."""
        lanes = [LaneStatus(api="api", in_flight=0, waiting=0, **(lane or {}))]
        await self.fleet.report(
            WorkerStatus(
                id="w", host="h", pid=1, started_ms=1, calls=0, cpu_s=0, draining=False, apis=["api"], lanes=lanes,
                **status,
            )
        )  # fmt: skip

    async def look(self, after_s: float = 1.0, **lane) -> None:
        """Let time pass and look."""
        await self.report(lane=lane)
        self.now_ms += int(after_s * 1000)
        await self.watch.look(self.now_ms)

    async def submit(self, name: str = "night", jobs: int = JOBS, **options) -> Claim:
        """Submit a batch of one chunk and claim it."""
        batch = await self.batches.create(name, retention_ms=MINUTE_MS, **options)
        payload = encode_chunk(Chunk("api", 0, [WireJob("GET", "/")] * jobs))
        await self.batches.add(batch, 0, [("api", payload)], park=False)
        await self.batches.seal(batch)
        claim = await self.chunks.claim(ChunkRef(batch, 0, "api"))
        assert isinstance(claim, Claim)
        return claim

    async def record(self, claim: Claim, ok: int, failed: int = 0, *, finish: bool = True) -> None:
        """Record outcomes of a chunk."""
        bundle = Bundle()
        for at in range(ok + failed):
            code = None if at < ok else "http_404"
            bundle.add(at, WireOutcome(at, None, 200, b"x" * 100, {}, code, code, 1, 0, 1000))
        await self.chunks.commit(claim, bundle, Finish() if finish else None)

    async def told(self) -> list[str]:
        """Return the events noted so far."""
        entries = await self.redis.xrange(keys.ALERTS)
        return [json.loads(fields[b"e"])["event"] for _, fields in entries]


@pytest.fixture
def run(redis_url, hook) -> Callable[[Callable], None]:
    """Run a coroutine function on a site of its own."""

    @asynccontextmanager
    async def site() -> AsyncIterator[Site]:
        made = Site(redis_url, hook)
        made.now_ms = await made.log.now_ms()
        await made.sender.send_waiting()  # the webhook is known from now on
        try:
            yield made
        finally:
            await made.transport.aclose()
            await made.redis.aclose()

    def runner(test: Callable) -> None:
        async def main() -> None:
            async with site() as made:
                await test(made)

        asyncio.run(main())

    return runner


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


async def noted(site: Site, event: str = "batch_done", at: str | None = None) -> Alert:
    """Note an alert."""
    at = at or datetime.now(UTC).isoformat()
    alert = Alert(id=f"{event}-{await site.redis.xlen(keys.ALERTS)}", event=event, at=at, text="Callmill: a text")
    assert await site.log.change("", None, None, alert)
    return alert


def test_workers_that_send_at_the_same_time_post_once(run, hook):
    """However many workers have the webhook, each alert is posted once, in order."""

    async def test(site: Site) -> None:
        alerts = [await noted(site) for _ in range(5)]
        senders = [site.another_sender(f"w{n}") for n in range(4)]
        await asyncio.gather(*(sender.send_waiting() for sender in senders))
        await asyncio.gather(*(sender.send_waiting() for sender in senders))
        assert [post["id"] for post in hook.posts] == [alert.id for alert in alerts]

    run(test)


def test_alert_survives_the_worker_that_was_to_post_it(run, hook, monkeypatch):
    """What a worker had in hand when it was killed is posted by another one, once its time is over."""
    monkeypatch.setattr(alert_sender, "_MARGIN_S", 0.05)
    monkeypatch.setattr(alert_sender, "TIMEOUT_S", 0.05)

    async def test(site: Site) -> None:
        alert = await noted(site)
        webhook = site.sender._webhooks[0].name
        assert await site.log.next(webhook, "killed", lease_s=0.2)
        other = site.another_sender("w2")
        await other.send_waiting()
        assert hook.posts == []
        while not hook.posts:
            await other.send_waiting()
            await asyncio.sleep(0.01)
        assert [post["id"] for post in hook.posts] == [alert.id]

    run(test)


@pytest.mark.parametrize("status", ["500 Oops", "503 Later", "429 Slow", "408 Slow"])
def test_refused_alert_is_posted_again_with_its_id(run, hook, caplog, status):
    """A webhook that cannot take an alert now gets it again, the same, before any newer one."""
    hook.answers += [status, status]

    async def test(site: Site) -> None:
        first, second = [await noted(site) for _ in range(2)]
        delays = [await site.sender.send_waiting() for _ in range(3)]
        assert delays[0] < delays[1]
        assert [post["id"] for post in hook.posts] == [first.id] * 3 + [second.id]

    run(test)
    assert [record.action for record in caplog.records].count("alert_retry") == 2
    assert "hook-secret-1" not in caplog.text


def test_alert_that_is_not_taken_does_not_hold_up_others(run, hook, caplog):
    """An alert that is refused for good, or that is too old by now, is lost with a word; the next one goes out."""
    hook.answers += ["400 Bad Request", "503 Later", "200 OK"]

    async def test(site: Site) -> None:
        await noted(site)
        await noted(site, at="2020-01-01T00:00:00Z")
        last = await noted(site)
        await site.sender.send_waiting()
        assert hook.posts[-1]["id"] == last.id

    run(test)
    lost = [record for record in caplog.records if record.action == "alert_lost"]
    assert [record.reason for record in lost] == ["400 Bad Request", "503 Service Unavailable"]
    assert "hook-secret-1" not in caplog.text


def test_webhook_that_cannot_be_reached_is_tried_again(run, hook, caplog):
    """An address where nobody listens is a matter of time, and its alerts wait."""

    async def test(site: Site) -> None:
        dead = AlertSender(
            site.log, ["http://127.0.0.1:1/hook-secret-2"], list(AlertEvent), worker="w", transport=site.transport
        )
        await dead.send_waiting()
        await noted(site)
        await dead.send_waiting()
        await site.sender.send_waiting()
        assert len(hook.posts) == 1

    run(test)
    assert "webhook 1: connect" in caplog.text
    assert "hook-secret-2" not in caplog.text


def test_only_chosen_events_are_posted(run, hook):
    """Events that were not asked for are passed over."""

    async def test(site: Site) -> None:
        for event in ("batch_done", "lane_paused", "batch_failed"):
            await noted(site, event)
        await site.another_sender("w", events=("batch_failed",)).send_waiting()
        assert hook.events == ["batch_failed"]

    run(test)


def test_new_webhook_is_not_told_what_is_past(run, hook):
    """A webhook that is configured today hears of what happens from now on."""

    async def test(site: Site) -> None:
        await noted(site)
        await site.redis.delete(keys.ALERTS_SENT)
        await site.sender.send_waiting()
        await noted(site, "lane_paused")
        await site.sender.send_waiting()
        assert hook.events == ["lane_paused"]

    run(test)


def test_alerts_that_wait_are_bounded(run, monkeypatch):
    """Where no webhook takes them, the oldest are dropped."""
    monkeypatch.setattr(alert_log, "KEPT", 10)

    async def test(site: Site) -> None:
        for _ in range(15):
            await noted(site)
        assert await site.redis.xlen(keys.ALERTS) == 10

    run(test)


def test_names_neither_mention_nor_mark_up(run, hook):
    """What a batch is called is shown as it is, and wakes nobody in the chat."""

    async def test(site: Site) -> None:
        await site.record(await site.submit("<!channel> `@all`\nsecond line"), 4)
        await site.watch.look()
        await site.sender.send_waiting()
        text = hook.posts[0]["text"]
        assert "<" not in text
        assert "@all" not in text
        assert "\n" not in text
        assert text.count("`") == 2

    run(test)
