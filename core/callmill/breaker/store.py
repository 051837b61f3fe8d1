"""BreakerStore: a process's exchanges with the breaker of one API in Redis."""

from __future__ import annotations

import asyncio
import random
from importlib.resources import files

from redis.asyncio import Redis
from redis.exceptions import RedisError

from callmill.breaker.keys import Keys
from callmill.breaker.records import STREAK_S, BreakerRules, BreakerState, BreakerView, Report
from callmill.errors import RedisUnavailableError

COMMAND_TIMEOUT_S = 2.0
PROBE_LEASE_S = 5.0
"""How long a prober that says nothing keeps the others from probing."""

RETRIES_AT_LEAST = 10
"""Retries in 10 s that the budget always has."""

_LONGEST_REASON = 200
_STATES = (BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN)


class BreakerStore:
    """One API's breaker and retry budget, as one worker speaks with it.

    Args:
        redis: The limiter's server.
        api: The API.
        rules: When it opens.
        worker: Who speaks.
        lease_s: How long a prober that says nothing keeps the others from probing.
    """

    def __init__(
        self, redis: Redis, api: str, rules: BreakerRules, *, worker: str, lease_s: float = PROBE_LEASE_S
    ) -> None:
        self.rules = rules
        self._worker = worker
        self._lease_s = lease_s
        keys = Keys(api)
        self._keys = [keys.state, keys.counts]
        self._script = redis.register_script((files("callmill.breaker") / "lua/exchange.lua").read_text())

    async def exchange(self, report: Report, epoch: int) -> BreakerView:
        """Tell what happened since the last exchange, and learn what holds; ``epoch``: the one that it happened in.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused; whether it took the report is unknown.
        """
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                answer = await self._script(keys=self._keys, args=self._arguments(report, epoch))
        except (RedisError, OSError) as error:  # TimeoutError is an OSError
            raise RedisUnavailableError(f"Redis: {type(error).__name__}: {error}") from error
        state, epoch, ok, bad, streak, streak_ms, probe_in_ms, probes, retries, reason = answer
        return BreakerView(
            state=_STATES[state],
            epoch=epoch,
            ok=ok,
            bad=bad,
            streak=streak,
            streak_s=streak_ms / 1000,
            probe_in_s=probe_in_ms / 1000,
            probes=probes,
            retries=retries,
            reason=reason.decode(errors="replace") if isinstance(reason, bytes) else reason,
        )

    def _arguments(self, report: Report, epoch: int) -> list[str | int | float]:
        rules = self.rules
        return [
            self._worker,
            epoch,
            report.ok,
            report.bad,
            report.streak,
            round(report.streak_s * 1000),
            report.why[:_LONGEST_REASON],
            report.calls,
            report.failed,
            report.retries_wanted,
            report.probes_good,
            report.probes_bad,
            int(report.probing),
            int(report.would_probe),
            random.random(),  # noqa: S311 - spread, not secrecy; Redis seeds its own alike every time
            rules.errors,
            rules.calls,
            round(rules.window_s * 1000),
            rules.streak,
            round(STREAK_S * 1000),
            round(rules.probe_s * 1000),
            round(rules.cap_s * 1000),
            rules.retry_share,
            RETRIES_AT_LEAST,
            round(self._lease_s * 1000),
        ]
