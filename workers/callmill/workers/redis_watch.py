"""RedisWatch: why this worker should hold, because Redis could not keep what it does.

Two reasons: its memory is nearly full, or it is a server that would lose jobs and that was away when the worker
started, or took over since.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import redis

from callmill.config import redis_safety
from callmill.config.redis_connections import connect_blocking
from callmill.config.redis_safety import Level, ServerFacts
from callmill.errors import RedisUnavailableError
from callmill.ledger import LedgerSession
from callmill.ledger.memory import MemoryGauge, Role
from callmill.workers.rhythm import Rhythm
from callmill.workers.worker_options import WorkerOptions

log = logging.getLogger(__name__)

_EVERY_S = 0.5
_AT_REST_EVERY_S = 1.0
_SAME_SERVER_EVERY = 10
"""Looks at the memory between two looks whether it is the same server."""

_PINGS = 20


class RedisWatch:
    """Looks at the ledger's server twice a second, at rest once. Belongs to one event loop.

    Args:
        session: The ledger.
        options: Its address, and what is allowed.
        hold: Takes the reason to hold; empty: go on.
        gauge: Its memory.
        rhythm: Says when to look.
    """

    def __init__(
        self,
        session: LedgerSession,
        options: WorkerOptions,
        hold: Callable[[str], None],
        *,
        gauge: MemoryGauge,
        rhythm: Rhythm,
    ) -> None:
        self._session = session
        self._options = options
        self._hold = hold
        self._rhythm = rhythm
        self._gauge = gauge
        self._server = ""
        self._refusal = ""
        self._holds = False

    async def run(self) -> None:
        """Look, until cancelled."""
        looks = 0
        while True:
            try:
                if looks % _SAME_SERVER_EVERY == 0:
                    await self._check_server()
                looks += 1
                self._say(self._refusal or await self._gauge.why_wait(Role.WORKER))
            except RedisUnavailableError as error:
                log.debug("Redis not looked at: %s", error, extra={"action": "redis_watch_failed"})
                looks = 0  # what comes back may be another server
            await self._rhythm.pause(_EVERY_S, at_rest_s=_AT_REST_EVERY_S)

    def _say(self, reason: str) -> None:
        if self._holds != bool(reason):
            self._holds = bool(reason)
            if reason:
                log.warning("holding: %s", reason, extra={"action": "redis_hold"})
            else:
                log.warning("going on: Redis has room again", extra={"action": "redis_room"})
        self._hold(reason)

    async def _check_server(self) -> None:
        server = str((await self._session.answer(self._session.redis.info("server"))).get("run_id", "unknown"))
        if server == self._server:
            return
        try:
            self._refusal = await asyncio.to_thread(self._examine)
        except redis.RedisError as error:
            raise RedisUnavailableError(f"Redis cannot be examined: {error}") from error
        self._server = server

    def _examine(self) -> str:
        client = connect_blocking(self._options.redis_url)
        try:
            facts = ServerFacts.read(client)
            findings = [
                *redis_safety.durability(facts),
                *redis_safety.condition(facts),
                *redis_safety.memory(facts, self._options.memory_watermark),
                redis_safety.latency(client, _PINGS),
                redis_safety.clock(client),
            ]
        finally:
            client.close()
        for finding in findings:
            if finding.level is not Level.OK:
                log.warning("Redis: %s", finding, extra={"action": "redis_finding", "check": finding.check})
        return redis_safety.refusal(facts, allow_unsafe=self._options.allow_unsafe_redis) or ""
