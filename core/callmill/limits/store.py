"""The limiter's exchanges with Redis: every command under a time limit, every failure one error."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, Literal

from msgspec import Struct
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError

from callmill.errors import RedisUnavailableError
from callmill.limits.cost import NOTHING, Columns
from callmill.limits.keys import Keys
from callmill.limits.layout import OF_API, Layout, Node
from callmill.limits.permits import Answers, Lease
from callmill.limits.rules import FASTEST_GUESS
from callmill.limits.scripts import FORMAT, script

COMMAND_TIMEOUT_S = 2.0
HORIZON_US = 250_000
LONGEST_COLD_WAIT_US = 5_000_000
SCRIPTS = ("reserve", "pause", "refused", "feed", "restore", "permits")

Doubt = Literal["", "stepped", "rules", "look"]


class Settlement(Struct, frozen=True):
    """What calls used that was not reserved, and the reverse.

    Attributes:
        key: The credential that it belongs to, from 1; 0: limits of all credentials only.
        since_us: From now to the earliest start that it belongs to.
        dearer: Units used beyond what was reserved.
        unused: Units reserved and not used.
    """

    key: int
    since_us: int
    dearer: Columns
    unused: Columns


class Request(Struct, frozen=True, kw_only=True):
    """What a worker tells and asks in one exchange; see ``lua/reserve.lua``.

    Attributes:
        boot: The life of the state that the worker knows.
        seq: The latest exchange that it knows.
        latest_us: From now to the latest start it was granted.
        heaviest: How many requests the heaviest start counted as that may still keep a limit busy.
        lead_us: It can use no start sooner than this.
        guard_us: Timing uncertainty it needs to be allowed for.
        doubt: Why the state may not be what it seems: it saw the clock of Redis jump ahead, other limits hold since its
            last request, or this may be another server.
        settlements: What is to be settled.
        allowances: How many of the calls may use each credential.
        taken: Calls that the API took since the last request, with each credential; empty for none.
        calls: How many calls wait.
        costs: What each of them costs; empty where each is one request and nothing else.
    """

    boot: str
    seq: int
    latest_us: int
    heaviest: int = 1
    lead_us: int
    guard_us: int
    doubt: Doubt = ""
    settlements: Sequence[Settlement] = ()
    allowances: Sequence[int]
    taken: Sequence[int] = ()
    calls: int
    costs: Sequence[Columns] = ()

    def arguments(self, worker: str, channel: str, layout: Layout) -> list[str | int | float]:
        """The same as the script takes it."""
        arguments: list[str | int | float] = [
            worker,
            self.boot,
            self.seq,
            self.latest_us,
            self.lead_us,
            self.guard_us,
            self.doubt,
            channel,
            HORIZON_US,
            LONGEST_COLD_WAIT_US,
            str(layout.traffic),
            layout.weight,
            len(self.allowances),
            self.calls,
            len(NOTHING) if self.costs else 0,
            self.heaviest,
            len(self.settlements),
        ]
        for due in self.settlements:
            arguments += [due.key, due.since_us, *due.dearer, *due.unused]
        arguments += self.allowances
        arguments += self.taken or [0] * len(self.allowances)
        arguments += [node.owner for node in layout.nodes]
        arguments += layout.scopes
        for cost in self.costs:
            arguments += cost
        return arguments


class Grant(Struct, frozen=True, kw_only=True):
    """What Redis answered. Times are microseconds of Redis's clock, or from ``now_us`` on.

    Attributes:
        starts_us: When the calls may start.
        keys: The credential of each, from 1.
        scopes: Pause left and its reason, of the model and of each credential.
        upcoming_us: The first start that was not granted; -1 when nobody knows.
    """

    now_us: int
    boot: str
    seq: int
    again_us: int
    by: int
    pause_us: int
    pause_reason: str
    guard_us: int
    starts_us: list[int]
    keys: list[int]
    scopes: list[tuple[int, str]]
    upcoming_us: int


class Refusal(Struct, kw_only=True):
    """An API's refusal of a call; see ``lua/refused.lua``.

    Attributes:
        layout: The limits that held for the call.
        key: The credential that it used, from 1.
        scope: What its permits are of.
        permits: Permits that this worker held; 0 where calls in flight are not limited.
        workers: How many workers do as this one does.
        what: What there was too much of; empty where nobody says.
        in_a_row: How many such refusals came one after the other, and no call was taken in between.
        crowded: Whether other calls waited for permits.
        wanted: Whether other calls waited at all.
        asked_s: Seconds that the API asked to wait; 0: it did not say.
        begins: The limit that begins now because nobody wrote one down; None: there is one.
        started_s: Seconds since it started.
        refused_s: Seconds since it was refused.
        in_flight: Other calls of this worker that were in flight then, and were not refused.
        taken: Calls of this worker that the API took and that Redis has not been told of.
        taken_per_s: Calls a second that the API took from this worker lately.
    """

    layout: Layout
    key: int
    scope: str
    permits: int
    workers: float
    what: str
    in_a_row: int
    crowded: bool
    wanted: bool
    asked_s: float
    begins: Node | None
    started_s: float = 0.0
    refused_s: float = 0.0
    in_flight: int = 0
    taken: int = 0
    taken_per_s: float = 0.0


class Fact(Struct, frozen=True):
    """What an answer says about a limit; see ``lua/feed.lua``."""

    node: Node
    kind: Literal["slow", "block", "aligned", "most"]
    first: float
    second: float = 0.0


class LimitStore:
    """One API's limiter state in Redis."""

    def __init__(self, redis: Redis, name: str, worker: str) -> None:
        self.redis = redis
        self.name = name
        self.keys = Keys(name)
        self._worker = worker
        self._scripts = {kind: redis.register_script(script(kind)) for kind in SCRIPTS}

    async def publish_rules(self, layout: Layout) -> None:
        """Write a group's limits; what the clocks show and the quotas have counted is kept.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused.
        """
        if not layout.nodes:
            return
        await answer(self._publish(*layout.nodes).execute())

    async def reserve(self, layout: Layout, request: Request) -> Grant:
        """Settle, look, and reserve starts for the calls that wait.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused; whether it took the request is unknown.
        """
        raw = await self._exchange(layout, request)
        if len(raw) == 1:  # state lost, or a new limit: tell the rules, then ask again
            await self.publish_rules(layout)
            raw = await self._exchange(layout, request)
        if len(raw) == 1:
            raise RedisUnavailableError("the limits that were just written to Redis are gone again")
        now_us, boot, seq, again_us, by, pause_us, reason, guard_us, starts_us, keys, scopes, upcoming_us = raw
        return Grant(
            now_us=now_us,
            boot=_text(boot),
            seq=seq,
            again_us=again_us,
            by=by,
            pause_us=pause_us,
            pause_reason=_text(reason),
            guard_us=guard_us,
            starts_us=starts_us,
            keys=keys,
            scopes=[(left, _text(why)) for left, why in zip(scopes[::2], scopes[1::2], strict=True)],
            upcoming_us=upcoming_us,
        )

    async def pause(self, layouts: Iterable[Layout], seconds: float, reason: str, scope: str = "") -> None:
        """Pause the API, or one of its models or credentials, for every worker.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused; whether it took the pause is unknown.
        """
        limits = {key for layout in layouts for key in layout.redis_keys}
        keys = [self.keys.meta, *sorted(limits)]
        await self._run("pause", keys, [round(seconds * 1e6), reason, self.keys.channel, scope])

    async def refused(self, refusal: Refusal) -> bool:
        """Learn from a refusal; return whether that is news for people.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused.
        """
        layout, key, begins = refusal.layout, refusal.key, refusal.begins
        limits = [node.key for node in layout.nodes if node.owner <= OF_API or node.owner == key]
        if begins is not None and begins.key not in limits:
            await answer(self._publish(begins).execute())
            limits.append(begins.key)
        *_, used, meta = self.keys.permits(refusal.scope)
        changed = await self._run(
            "refused",
            [self.keys.meta, meta, used, *limits],
            [
                round(refusal.started_s * 1e6),
                round(refusal.refused_s * 1e6),
                refusal.in_flight,
                refusal.permits,
                refusal.taken_per_s * refusal.workers,
                refusal.what,
                0 if begins is None else limits.index(begins.key) + 1,
                FASTEST_GUESS,
                self.keys.channel,
                refusal.in_a_row,
                refusal.taken,
                int(refusal.crowded),
                round(refusal.asked_s * 1e6),
                self._worker,
                int(refusal.wanted),
            ],
        )
        return int(changed) > 1

    async def publish(self, message: str) -> None:
        """Tell all workers of this API.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused.
        """
        await answer(self.redis.publish(self.keys.channel, message))

    async def feed(self, facts: Sequence[Fact]) -> None:
        """Take what answers said about limits.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused.
        """
        keys = list(dict.fromkeys(fact.node.key for fact in facts))
        args: list[str | float] = [self.keys.channel]
        for fact in facts:
            args += [keys.index(fact.node.key) + 1, fact.kind, fact.first, fact.second]
        if begun := [fact.node for fact in facts if fact.kind == "most"]:
            await answer(self._publish(*begun).execute())
        await self._run("feed", [self.keys.meta, *keys], args)

    async def restore(self, boot: str, nodes: Sequence[Node], grants: Iterable[tuple[int, float, int]]) -> None:
        """Bring back what this worker was granted of quotas: index of the quota, seconds since then, units.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused.
        """
        args: list[str | int] = [boot]
        for index, age_s, units in grants:
            args += [index + 1, round(age_s * 1e6), units]
        await self._run("restore", [self.keys.meta, *(node.key for node in nodes)], args)

    async def permits(
        self, scope: str, *, want: int, used: int, held: int, limit: int, ttl_us: int, answers: Answers | None
    ) -> Lease:
        """Bring this worker's lease of permits of the API ('') or of one of its models or credentials up to date.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused; the lease may or may not be renewed.
        """
        args: list[str | int] = [self._worker, want, used, held, ttl_us, limit, self.keys.channel]
        if answers is None:
            args.append("")
        else:
            args += ["learn", answers.count, round(answers.sum_us), round(answers.squares)]
        return Lease(*await self._run("permits", [*self.keys.permits(scope), self.keys.meta], args))

    def _publish(self, *nodes: Node) -> Pipeline:
        pipeline = self.redis.pipeline(transaction=True)
        for node in nodes:
            pipeline.hset(node.key, mapping=node.clock.fields())
            for field, value in node.clock.beginning().items():
                pipeline.hsetnx(node.key, field, value)
        return pipeline

    async def _exchange(self, layout: Layout, request: Request) -> list[Any]:
        traffic = str(layout.traffic)
        meta = [self.keys.meta, self.keys.classes, self.keys.workers(traffic), self.keys.queue(traffic)]
        arguments = request.arguments(f"{self._worker}|{layout.model}", self.keys.channel, layout)
        raw: list[Any] = await self._run("reserve", [*meta, *layout.redis_keys], arguments)
        return raw

    async def _run(self, kind: str, keys: list[str], args: Sequence[str | float]) -> Any:
        return await answer(self._scripts[kind](keys=keys, args=list(args)))


async def answer(pending: Awaitable[Any]) -> Any:
    """Await an answer of Redis, not longer than the command timeout.

    Raises:
        RedisUnavailableError: Redis cannot be reached or refused.
    """
    try:
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            return await pending
    except (RedisError, OSError) as error:  # TimeoutError is an OSError
        if str(error).startswith("NEWERFORMAT"):  # no slot is granted until then, as while Redis is away
            written = str(error).split()[1]
            raise RedisUnavailableError(
                f"the limiter's state is of format {written}, this program knows {FORMAT}: upgrade it"
            ) from error
        why = str(error).rpartition(" caused error: ")[2]  # a pipeline's names all of a script in front
        raise RedisUnavailableError(f"Redis: {type(error).__name__}: {why}") from error


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
