"""An event loop whose time passes only when nothing is left to do, and a Redis that answers within no time."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis

BEGIN_S, EPOCH_S = 1000.0, 1_700_000_000
TIME_KEY, PUBLISHED_KEY = "test:now", "test:published"

PRELUDE = f"""
local real = redis
local redis = setmetatable({{call = function(command, ...)
  if command == 'TIME' then
    local us = tonumber(real.call('GET', '{TIME_KEY}'))
    return {{math.floor(us / 1000000), us % 1000000}}
  elseif command == 'PUBLISH' then
    return real.call('RPUSH', '{PUBLISHED_KEY}', select(2, ...))
  end
  return real.call(command, ...)
end}}, {{__index = real}})
"""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Jumps to the time of the next timer when no callback is ready."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = BEGIN_S

    def time(self) -> float:
        """The time that the loop has come to."""
        return self.now_s

    def _run_once(self) -> None:
        loop: Any = self
        if not loop._ready and loop._scheduled:
            timers = loop._scheduled[:1]
            if timers[0].cancelled():  # else it would be taken out below, and the next one waited for in real time
                timers = [timer for timer in loop._scheduled if not timer.cancelled()]
            self.now_s = max(self.now_s, min((timer.when() for timer in timers), default=self.now_s))
        super()._run_once()  # type: ignore[misc]


@contextmanager
def virtual_time() -> Iterator[VirtualLoop]:
    """Let ``monotonic`` of every module of Callmill follow a virtual loop."""
    loop = VirtualLoop()
    modules: list[Any] = [
        module for name, module in sys.modules.items() if name.startswith("callmill") and hasattr(module, "monotonic")
    ]
    real = [module.monotonic for module in modules]
    for module in modules:
        module.monotonic = loop.time
    try:
        yield loop
    finally:
        for module, clock in zip(modules, real, strict=True):
            module.monotonic = clock
        loop.close()


class InstantRedis:
    """What the limiter needs of an asynchronous client, made of a blocking one: no exchange takes virtual time."""

    def __init__(self, url: str, loop: VirtualLoop, way_s: float = 0.0) -> None:
        self._redis = redis.Redis.from_url(url)
        self._loop = loop
        self._way_s = way_s
        self._listeners: list[asyncio.Queue[dict[str, Any]]] = []
        self.exchanges = 0

    def register_script(self, text: str) -> Any:
        """A script whose TIME is virtual."""
        sha = self._redis.script_load(PRELUDE + text)

        async def run(keys: list[str], args: list[Any]) -> Any:
            self.exchanges += 1
            if self._way_s:
                await asyncio.sleep(self._way_s / 2)
            pipe = self._redis.pipeline(transaction=False)
            pipe.set(TIME_KEY, round((EPOCH_S + self._loop.time()) * 1e6))
            pipe.evalsha(sha, len(keys), *keys, *args)
            pipe.lpop(PUBLISHED_KEY, 100)
            _, answer, published = pipe.execute()
            for message in published or ():
                self._spread(message)
            if self._way_s:
                await asyncio.sleep(self._way_s / 2)
            return answer

        return run

    def pipeline(self, **_options: Any) -> Any:
        """Several commands at once."""
        return _Pipeline(self._redis.pipeline())

    async def publish(self, _channel: str, message: str) -> None:
        """Tell all who listen."""
        self._spread(message.encode())

    def pubsub(self) -> Any:
        """A subscription."""
        return _Subscription(self._listeners)

    def _spread(self, message: bytes) -> None:
        for listener in self._listeners:
            listener.put_nowait({"type": "message", "data": message})

    def __getattr__(self, name: str) -> Any:
        async def run(*args: Any, **options: Any) -> Any:
            return getattr(self._redis, name)(*args, **options)

        return run


class _Pipeline:
    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)

    async def execute(self) -> Any:
        return self._pipeline.execute()


class _Subscription:
    def __init__(self, listeners: list[asyncio.Queue[dict[str, Any]]]) -> None:
        self._listeners = listeners
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def subscribe(self, _name: str) -> None:
        self._listeners.append(self._queue)
        self._queue.put_nowait({"type": "subscribe", "data": 1})

    async def get_message(self, timeout: float) -> dict[str, Any] | None:  # noqa: ARG002, ASYNC109 - as redis-py's
        return await self._queue.get()

    async def ping(self) -> None: ...

    async def aclose(self) -> None:
        if self._queue in self._listeners:
            self._listeners.remove(self._queue)
