"""Holds and breaker of one API in several processes: whatever the order of their exchanges, some call can start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import NamedTuple

from hypothesis import example, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from callmill.breaker import BreakerRules, BreakerStore, BreakerView, Report
from callmill.breaker.keys import Keys as BreakerKeys
from callmill.config.profiles import ApiProfile
from callmill.holds import HOST, HoldReport, HoldStore, HoldView
from callmill.holds.keys import Keys
from callmill.jobs.wire import WireJob
from callmill.limits import Limiter
from callmill.limits.rules import LimitRules
from callmill.workers.breaker_gate import BreakerGate
from callmill.workers.fair_queue import FairQueue
from callmill.workers.hold_gate import HoldGate
from callmill.workers.hold_subjects import HOST_RULES, KEY_RULES
from callmill.workers.probe_choice import ProbeChoice

KEY = "key:default"
JOB = WireJob("GET", "/x")
ROUNDS = 10
STATES = ("unproven", "due", "proven")
PATIENCE_S = 30
_names = count()


class Known(NamedTuple):
    """What is known of an API: of its host and its credential, and whether the breaker is open."""

    host: str = "unproven"
    key: str = "unproven"
    down: bool = False


class Turns:
    """Lets exchanges happen one at a time, in the order that the test wants."""

    def __init__(self) -> None:
        self._came = asyncio.Event()
        self._go = asyncio.Event()

    async def take(self) -> None:
        """Wait for a turn."""
        self._came.set()
        await self._go.wait()
        self._go.clear()

    async def give(self) -> None:
        """Let one exchange happen, and wait until the next one is about to."""
        await self._came.wait()
        self._came.clear()
        self._go.set()
        await self._came.wait()


class SteppedHolds(HoldStore):
    """Exchanges when it is its turn."""

    turns: Turns

    async def exchange(self, report: HoldReport, *, begins: bool = False) -> HoldView:
        """Wait for the turn."""
        await self.turns.take()
        return await super().exchange(report, begins=begins)


class SteppedBreaker(BreakerStore):
    """Exchanges when it is its turn."""

    turns: Turns

    async def exchange(self, report: Report, epoch: int) -> BreakerView:
        """Wait for the turn."""
        await self.turns.take()
        return await super().exchange(report, epoch)


class Process:
    """One process's gates, with a call that waits."""

    def __init__(self, redis: Redis, api: str, worker: str, *, host: str, key: str) -> None:
        self.busy = True
        self.turns = {"holds": Turns(), "breaker": Turns()}
        marks = {HOST: (host, HOST_RULES), KEY: (key, KEY_RULES)}
        stores = [SteppedHolds(redis, api, name, *told, worker=worker) for name, told in marks.items()]
        for store in stores:
            store.turns = self.turns["holds"]

        async def open_stores() -> list[SteppedHolds]:
            return stores

        breaker = SteppedBreaker(redis, api, BreakerRules(), worker=worker)
        breaker.turns = self.turns["breaker"]
        told = {"on_news": lambda: None, "has_work": lambda: self.busy}
        limiter = Limiter(redis, api, LimitRules(), worker=worker)
        profile = ApiProfile(name="api", base_url="https://api.example.com")
        self.holds = HoldGate(profile, limiter, open_stores, in_flight=lambda: 0, **told)
        choice = ProbeChoice(FairQueue(lambda _: 1.0))
        self.breaker = BreakerGate("api", breaker, choice, may_probe=lambda: self.holds.can_start, **told)

    @property
    def can_call(self) -> bool:
        """Whether the call may start."""
        return self.busy and min(self.holds.startable, self.breaker.startable) > 0

    async def go_on(self) -> None:
        """Exchange for ever, whenever it is its turn."""
        await asyncio.gather(self._hold(), self._break())

    async def _hold(self) -> None:
        await self.holds._open()
        while True:
            await self.holds._exchange(self.holds._host)

    async def _break(self) -> None:
        while True:
            await self.breaker._exchange()


async def suppose(redis: Redis, api: str, subject: str, mark: str, state: str) -> None:
    """Have a host or a credential be in a state; ``due``: held, and to be tried; ``held``: another one tries it."""
    later_ms = (await redis.time())[0] * 1000 + 3_600_000
    due = {"held": 1, "hard": 8, "next": 1}
    fields = {"held": {**due, "prober": "another", "probing": later_ms}, "due": due, "proven": {"proven": 1}}
    if state in fields:
        await redis.hset(Keys(api).state(subject, mark), mapping=fields[state])


@asynccontextmanager
async def fleet(redis_url: str, kinds: list[str], known: Known) -> AsyncIterator[list[Process]]:
    """Run processes; ``kinds``: "" serves, "key" has a secret that is held, "host" cannot reach the host."""
    api = f"gates{next(_names)}"
    async with Redis.from_url(redis_url) as redis, asyncio.timeout(PATIENCE_S):
        await suppose(redis, api, HOST, "good", known.host)
        await suppose(redis, api, HOST, "bad", "held")
        await suppose(redis, api, KEY, "good", known.key)
        await suppose(redis, api, KEY, "bad", "held")
        if known.down:
            await redis.hset(BreakerKeys(api).state, mapping={"state": 1, "epoch": 1, "waits": 1, "probe_at": 1})
        processes = [
            Process(
                redis,
                api,
                f"w{number}",
                host="bad" if kind == "host" else "good",
                key="bad" if kind == "key" else "good",
            )
            for number, kind in enumerate(kinds)
        ]
        tasks = [asyncio.ensure_future(process.go_on()) for process in processes]
        try:
            yield processes
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def call_can_start(processes: list[Process]) -> bool:
    """Let every process exchange so often, and say whether a call can start."""
    for _ in range(ROUNDS):
        for process in processes:
            for turns in process.turns.values():
                await turns.give()
        if any(process.can_call for process in processes):
            return True
    return False


KINDS = st.lists(st.sampled_from(["", "", "key", "host"]), min_size=0, max_size=11).map(lambda kinds: [*kinds, ""])
ORDER = st.lists(st.tuples(st.integers(0, 11), st.sampled_from(["holds", "breaker"])), max_size=80)
ONE_AFTER_THE_OTHER = [(number, "holds") for number in range(8) for _ in range(3)]
CROSSWISE = [(number, "holds") for _ in range(3) for number in range(8)]


@settings(max_examples=60)
@example(
    kinds=[""] * 8, known=Known("unproven", "unproven", down=False), order=CROSSWISE[:8] + CROSSWISE[15::-1], left=0
)
@example(kinds=[""] * 8, known=Known("proven", "unproven", down=True), order=[(7, "breaker"), *CROSSWISE], left=0)
@example(kinds=[""] * 3, known=Known("proven", "due", down=True), order=[(2, "breaker"), *CROSSWISE[:3]], left=0)
@example(
    kinds=[*["key"] * 5, ""], known=Known("unproven", "unproven", down=False), order=ONE_AFTER_THE_OTHER[:15], left=0
)
@example(
    kinds=[*["host"] * 5, ""], known=Known("proven", "unproven", down=False), order=ONE_AFTER_THE_OTHER[:15], left=0
)
@example(kinds=[""] * 8, known=Known("unproven", "unproven", down=True), order=ONE_AFTER_THE_OTHER, left=7)
@given(
    kinds=KINDS,
    known=st.builds(Known, st.sampled_from(STATES), st.sampled_from(STATES), st.booleans()),
    order=ORDER,
    left=st.integers(0, 11),
)
def test_call_can_start_whatever_the_order_of_exchanges(redis_server, kinds, known, order, left):
    """Of processes with work one can call within a few exchanges, also after others with grants ran out of work."""

    async def scene() -> None:
        async with fleet(redis_server.url, kinds, known) as processes:
            for number, gate in order:
                await processes[number % len(processes)].turns[gate].give()
            for process in processes[: min(left, len(processes) - 1)]:
                process.busy = False
            assert await call_can_start(processes)

    asyncio.run(scene())
