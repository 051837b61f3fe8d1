"""What calls cost, shared between all processes through Redis, so that a new one begins with what the fleet knows."""

from __future__ import annotations

import asyncio

from redis.asyncio import Redis

from callmill.config.beat import until_beat_s
from callmill.config.cancelling import end_tasks
from callmill.errors import RedisUnavailableError
from callmill.limits.costs import MEMORY, MOST_KINDS, CostBook, Tally
from callmill.limits.keys import Keys
from callmill.limits.scripts import COSTS, CostsArguments, CostsKeys, ToldTally
from callmill.limits.store import answer

EVERY_S = 1.0
KEPT_S = 30 * 86400


class CostSharing:
    """Keeps a book of costs in step with the fleet's, at most once a second. While Redis is away, the book is local."""

    def __init__(self, redis: Redis, name: str, book: CostBook) -> None:
        self._redis = redis
        self._key = Keys(name).costs
        self._book = book
        self._merge = redis.register_script(COSTS.text)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read what the fleet knows, if Redis can be reached, and stay in step from now on."""
        try:
            raw = await answer(self._redis.hgetall(self._key))
        except RedisUnavailableError:
            raw = {}
        self._book.heard({_text(kind): _tally(sums) for kind, sums in raw.items()})
        self._task = asyncio.create_task(self._run())

    async def aclose(self) -> None:
        """Tell what is new, if Redis can be reached, and stop. Idempotent."""
        task, self._task = self._task, None
        if task is None:
            return
        await end_tasks([task])
        await self.exchange()

    async def exchange(self) -> None:
        """Tell what is new here, and take over what is new elsewhere."""
        if not self._book.has_news:
            return
        news = self._book.tell()
        told = CostsArguments(
            most_calls=MEMORY,
            most_tallies=MOST_KINDS,
            kept_s=KEPT_S,
            tallies=[ToldTally(kind, tally) for kind, tally in news.items()],
        )
        call = COSTS.call(CostsKeys(self._key), told)
        try:
            raw = await answer(self._merge(keys=call.keys, args=call.arguments))
        except (RedisUnavailableError, asyncio.CancelledError) as error:
            self._book.unheard()
            if isinstance(error, asyncio.CancelledError):
                raise
        else:
            self._book.heard({kind: _tally(sums) for kind, sums in zip(news, raw, strict=True)})

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S if self._book.has_news else until_beat_s(EVERY_S))
            await self.exchange()


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _tally(sums: bytes | str) -> Tally:
    return Tally(*map(float, _text(sums).split()))
