"""The limiter's exchanges with Redis: every command under a time limit, every failure one error."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from time import monotonic
from typing import Any, Literal

from msgspec import Struct
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError

from callmill.config.lua_script import Call, LuaScript
from callmill.errors import RedisUnavailableError
from callmill.limits import scripts
from callmill.limits.exchange_turns import ExchangeTurns
from callmill.limits.keys import Keys
from callmill.limits.layout import OF_API, Layout, Node
from callmill.limits.permits import Answers, Lease
from callmill.limits.reservation import Doubt, Grant, Request, Settlement
from callmill.limits.rules import FASTEST_GUESS

__all__ = [
    "Claim",
    "Doubt",
    "Fact",
    "Grant",
    "LimitStore",
    "Refusal",
    "Request",
    "Settlement",
    "answer",
    "reserve_call",
]

COMMAND_TIMEOUT_S = 2.0
PERMITS_KEPT_MS, MODEL_PERMITS_KEPT_MS = 2_764_800_000, 600_000
HORIZON_US = 250_000
LONGEST_COLD_WAIT_US = 5_000_000


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


class Claim(Struct, frozen=True):
    """What an answer asks for beyond what one answer alone is believed; see ``lua/pause.lua``.

    Attributes:
        until: How long it asks to wait, as a time of ``time.monotonic()``.
        started: When the call was sent, on the same clock.
        witness: The job that made it; empty: unknown.
    """

    until: float
    started: float
    witness: str = ""


class Fact(Struct, frozen=True):
    """What an answer says about a limit; see ``lua/feed.lua``."""

    node: Node
    kind: Literal["slow", "block", "aligned", "most"]
    first: float
    second: float = 0.0


_SCRIPTS: tuple[LuaScript[Any, Any], ...] = (
    *(
        scripts.RESERVE,
        scripts.PAUSE,
        scripts.EASE,
        scripts.FORGIVE,
        scripts.REFUSED,
        scripts.FEED,
        scripts.RESTORE,
        scripts.PERMITS,
    ),
)


class LimitStore:
    """One API's limiter state in Redis."""

    def __init__(self, redis: Redis, name: str, worker: str) -> None:
        self.redis = redis
        self.name = name
        self.keys = Keys(name)
        self.turns = ExchangeTurns()
        self._worker = worker
        self._registered = {script: redis.register_script(script.text) for script in _SCRIPTS}

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
        call = reserve_call(self.keys, f"{self._worker}|{layout.model}", layout, request)
        raw: list[Any] = await self._run(call)
        if len(raw) == 1:  # state lost, or a new limit: tell the rules, then ask again
            await self.publish_rules(layout)
            raw = await self._run(call)
        if len(raw) == 1:
            raise RedisUnavailableError("the limits that were just written to Redis are gone again")
        return Grant(*raw).in_text()

    async def pause(
        self,
        layouts: Iterable[Layout],
        seconds: float,
        reason: str,
        scope: str = "",
        *,
        said_s: float = 0.0,
        claim: Claim | None = None,
        guessed_s: float = 0.0,
        refused: str = "",
    ) -> bool:
        """Pause the API, or one of its models or credentials, for every worker.

        ``refused``: the class of the call whose refusal is the reason.
        Returns whether it is paused now; not where it was resumed in the ``said_s`` seconds since the reason was given.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused; whether it took the pause is unknown.
        """
        limits = set() if scope else {key for layout in layouts for key in layout.redis_keys}
        now = monotonic()
        call = scripts.PAUSE.call(
            scripts.PauseKeys(self.keys.meta, self.keys.paused, sorted(limits)),
            scripts.PauseArguments(
                pause_us=round(seconds * 1e6),
                said_us=round(said_s * 1e6),
                reason=reason,
                channel=self.keys.channel,
                scope=scope,
                claim_us=0 if claim is None else round((claim.until - now) * 1e6),
                started_us=0 if claim is None else round((now - claim.started) * 1e6),
                witness="" if claim is None else claim.witness,
                guessed_us=round(guessed_s * 1e6),
                refused=refused,
            ),
        )
        return bool(await self._run(call))

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
        permits = self.keys.permits(refusal.scope)
        call = scripts.REFUSED.call(
            scripts.RefusedKeys(meta=self.keys.meta, permits=permits.meta, in_use=permits.used, limits=limits),
            scripts.RefusedArguments(
                worker=self._worker,
                channel=self.keys.channel,
                started_us=round(refusal.started_s * 1e6),
                refused_us=round(refusal.refused_s * 1e6),
                in_flight=refusal.in_flight,
                permits=refusal.permits,
                taken_per_s=refusal.taken_per_s * refusal.workers,
                what=refusal.what,
                begins=0 if begins is None else limits.index(begins.key) + 1,
                fastest=FASTEST_GUESS,
                in_a_row=refusal.in_a_row,
                taken=refusal.taken,
                crowded=refusal.crowded,
                asked_us=round(refusal.asked_s * 1e6),
                wanted=refusal.wanted,
            ),
        )
        changed = await self._run(call)
        return int(changed) > 1

    async def publish(self, message: str) -> None:
        """Tell all workers of this API.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused.
        """
        await answer(self.redis.publish(self.keys.channel, message))

    async def ease(self, scope: str, least_s: float, waits: str = "") -> tuple[int, str]:
        """End a pause that is a guess and began so long ago, for a call of the class ``waits``.

        Returns us until it may be tried again, -1: it is no guess; and the class that was refused, '' if it is unknown.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused.
        """
        arguments = scripts.EaseArguments(
            channel=self.keys.channel, scope=scope, least_us=round(least_s * 1e6), waits=waits
        )
        left_us, refused = await self._run(scripts.EASE.call(scripts.EaseKeys(self.keys.meta), arguments))
        return left_us, refused.decode() if isinstance(refused, bytes) else refused

    async def forgive(self, limits: Sequence[Node], began_s: float) -> None:
        """Forget what refusals taught of these limits since so long ago.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused.
        """
        keys = scripts.ForgiveKeys(self.keys.meta, [node.key for node in limits])
        arguments = scripts.ForgiveArguments(channel=self.keys.channel, began_us=round(began_s * 1e6))
        await self._run(scripts.FORGIVE.call(keys, arguments))

    async def taken(self, scope: str) -> None:
        """Tell all workers that the API takes calls again; what an answer claimed before that is forgotten.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused.
        """
        pipeline = self.redis.pipeline(transaction=False)
        pipeline.hdel(self.keys.meta, f"claim:{scope}" if scope else "claim")
        pipeline.publish(self.keys.channel, "row 0")
        await answer(pipeline.execute())

    async def feed(self, facts: Sequence[Fact]) -> None:
        """Take what answers said about limits.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused.
        """
        keys = list(dict.fromkeys(fact.node.key for fact in facts))
        told = [
            scripts.ToldFact(limit=keys.index(fact.node.key) + 1, kind=fact.kind, first=fact.first, second=fact.second)
            for fact in facts
        ]
        if begun := [fact.node for fact in facts if fact.kind == "most"]:
            await answer(self._publish(*begun).execute())
        call = scripts.FEED.call(
            scripts.FeedKeys(self.keys.meta, keys),
            scripts.FeedArguments(channel=self.keys.channel, facts=told),
        )
        await self._run(call)

    async def restore(self, boot: str, nodes: Sequence[Node], grants: Iterable[tuple[int, float, int]]) -> None:
        """Bring back what this worker was granted of quotas: index of the quota, seconds since then, units.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused.
        """
        told = [
            scripts.ToldGrant(quota=index + 1, age_us=round(age_s * 1e6), units=units) for index, age_s, units in grants
        ]
        call = scripts.RESTORE.call(
            scripts.RestoreKeys(self.keys.meta, [node.key for node in nodes]),
            scripts.RestoreArguments(boot=boot, grants=told),
        )
        await self._run(call)

    async def permits(
        self, scope: str, *, want: int, used: int, held: int, limit: int, ttl_us: int, answers: Answers | None
    ) -> Lease:
        """Bring this worker's lease of permits of the API ('') or of one of its models or credentials up to date.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused; the lease may or may not be renewed.
        """
        call = scripts.PERMITS.call(
            scripts.LeaseKeys(self.keys.meta),
            scripts.LeaseArguments(
                scope=scope,
                worker=self._worker,
                want=want,
                used=used,
                held=held,
                lease_us=ttl_us,
                limit=limit,
                channel=self.keys.channel,
                answers=answers,
                kept_ms=MODEL_PERMITS_KEPT_MS if scope.startswith("model:") else PERMITS_KEPT_MS,
            ),
            self.keys.permits(scope),
        )
        return Lease(*await self._run(call))

    def _publish(self, *nodes: Node) -> Pipeline:
        pipeline = self.redis.pipeline(transaction=True)
        for node in nodes:
            pipeline.hset(node.key, mapping=node.clock.fields())
            for field, value in node.clock.beginning().items():
                pipeline.hsetnx(node.key, field, value)
        return pipeline

    async def _run(self, call: Call) -> Any:
        return await answer(self._registered[call.script](keys=call.keys, args=call.arguments))


def reserve_call(keys: Keys, worker: str, layout: Layout, request: Request) -> Call:
    """Return the call of ``lua/reserve.lua`` by which a worker asks for calls of this layout."""
    traffic = str(layout.traffic)
    return scripts.RESERVE.call(
        scripts.ReserveKeys(
            meta=keys.meta,
            classes=keys.classes,
            workers=keys.workers(traffic),
            queue=keys.queue(traffic),
            limits=layout.redis_keys,
        ),
        scripts.ReserveArguments(
            request=request,
            worker=worker,
            channel=keys.channel,
            horizon_us=HORIZON_US,
            longest_cold_wait_us=LONGEST_COLD_WAIT_US,
            traffic=traffic,
            weight=repr(layout.weight),
            owners=[node.owner for node in layout.nodes],
            scopes=layout.scopes,
        ),
    )


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
                f"the limiter's state is of format {written}, this program knows {scripts.FORMAT}: upgrade it"
            ) from error
        why = str(error).rpartition(" caused error: ")[2]  # a pipeline's names all of a script in front
        raise RedisUnavailableError(f"Redis: {type(error).__name__}: {why}") from error
