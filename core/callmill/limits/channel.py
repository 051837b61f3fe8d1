"""Hears at once what other workers tell about an API: a pause, or a new life of the state in Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from callmill.config.dropped_messages import dropped_messages

SILENCE_S = 5.0
RETRY_S = 0.5
_MOST_BYTES = 4096


class Channel:
    """A subscription that comes back by itself after every fault."""

    def __init__(
        self, redis: Redis, name: str, *, on_message: Callable[[str], None], on_subscribed: Callable[[], None]
    ) -> None:
        self._redis = redis
        self._name = name
        self._on_message = on_message
        self._on_subscribed = on_subscribed
        self.subscribed = asyncio.Event()

    async def run(self) -> None:
        """Listen until cancelled."""
        while True:
            pubsub = self._redis.pubsub()
            try:
                await pubsub.subscribe(self._name)
                await self._listen(pubsub)
            except (RedisError, OSError):
                self.subscribed.clear()
                await asyncio.sleep(RETRY_S)
            finally:
                with suppress(RedisError, OSError):
                    await pubsub.aclose()  # type: ignore[no-untyped-call]

    async def _listen(self, pubsub: PubSub) -> None:
        pinged = False
        while True:
            message = await pubsub.get_message(timeout=SILENCE_S)
            if message is None:
                # A connection can die without a word; a ping that stays unanswered tells.
                if pinged:
                    raise RedisConnectionError("the subscription is silent")
                await pubsub.ping()
            pinged = message is None
            if message is not None:
                self._take(message)

    def _take(self, message: dict[str, Any]) -> None:
        if message["type"] == "subscribe":
            self.subscribed.set()
            self._on_subscribed()
        elif message["type"] == "message":
            self._pass_on(message["data"])

    def _pass_on(self, data: bytes | str) -> None:
        """Have a message taken; what nobody of ours would send is dropped, and the subscription goes on."""
        if len(data) > _MOST_BYTES:
            dropped_messages.note(
                f"channel {self._name}", f"it has {len(data):,} bytes, at most {_MOST_BYTES:,} are read"
            )
            return
        try:
            self._on_message(data.decode() if isinstance(data, bytes) else data)
        except (ValueError, ArithmeticError) as error:
            dropped_messages.note(f"channel {self._name}", error)
