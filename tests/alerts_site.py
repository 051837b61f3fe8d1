"""A webhook, and a ledger with a watch on it and senders to that webhook, on a clock of the test's own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from faulty_server import Exchange, FaultyServer, faulty_server

from callmill.config.alert_policy import AlertEvent
from callmill.config.redis_connections import connect
from callmill.jobs.wire import Chunk, WireJob, WireOutcome, encode_chunk
from callmill.ledger import Batches, Bundle, ChunkRef, Chunks, Claim, Finish, LedgerSession, keys
from callmill.ledger.alert_log import AlertLog
from callmill.ledger.fleet import Fleet, LaneStatus, WorkerStatus
from callmill.ledger.memory import MemoryGauge
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


@contextmanager
def webhook() -> Iterator[Hook]:
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
        session = LedgerSession(self.redis)
        return AlertWatch(session, gauge=MemoryGauge(session, 0.85), stuck_after_s=STUCK_AFTER_S)

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


def runner(redis_url: str, hook: Hook) -> Callable[[Callable], None]:
    """Return what runs a coroutine function on a site of its own."""

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

    def run(test: Callable) -> None:
        async def main() -> None:
            async with site() as made:
                await test(made)

        asyncio.run(main())

    return run
