"""BreakerStore: a process's exchanges with the breaker of one API in Redis."""

from __future__ import annotations

import asyncio
import random

from msgspec.structs import replace
from redis.asyncio import Redis
from redis.exceptions import RedisError

from callmill.breaker.keys import Keys
from callmill.breaker.records import STREAK_S, WITNESSES, BreakerRules, BreakerState, BreakerView, Report
from callmill.breaker.scripts import EXCHANGE, ExchangeArguments, Exchanged, ExchangeKeys
from callmill.errors import RedisUnavailableError

COMMAND_TIMEOUT_S = 2.0
PROBE_LEASE_S = 5.0
"""How long a prober that says nothing keeps the others from probing."""

RETRIES_AT_LEAST = 256
"""Retries in 10 s that the budget always allows: what 64 failing jobs need, the most that a healthy API may have."""

RETRIES_OF_OVERLOADED = 10
"""The same if more than a twentieth of the calls met an API that could not serve them."""

DOUBTS_LAST_S = 600.0
"""Doubts are forgotten when none was added for this long."""

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
        self._keys = ExchangeKeys(state=keys.state, counts=keys.counts)
        self._script = redis.register_script(EXCHANGE.text)

    async def exchange(self, report: Report, epoch: int) -> BreakerView:
        """Tell what happened since the last exchange, and learn what holds; ``epoch``: the one that it happened in.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused; whether it took the report is unknown.
        """
        call = EXCHANGE.call(self._keys, self._arguments(report, epoch))
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                answer = await self._script(keys=call.keys, args=call.arguments)
        except (RedisError, OSError) as error:  # TimeoutError is an OSError
            raise RedisUnavailableError(f"Redis: {type(error).__name__}: {error}") from error
        told = Exchanged(*answer)
        return BreakerView(
            state=_STATES[told.state],
            epoch=told.epoch,
            ok=told.ok,
            bad=told.bad,
            streak=told.streak,
            streak_s=told.streak_ms / 1000,
            witnesses=told.witnesses,
            doubts=told.doubts,
            probe_in_s=told.probe_in_ms / 1000,
            probes=told.probes,
            retries=told.retries,
            reason=told.reason.decode(errors="replace"),
        )

    def _arguments(self, report: Report, epoch: int) -> ExchangeArguments:
        return ExchangeArguments(
            worker=self._worker,
            epoch=epoch,
            report=replace(report, why=report.why[:_LONGEST_REASON]),
            rules=self.rules,
            random=random.random(),  # noqa: S311 - spread, not secrecy; Redis always uses the same seed
            streak_s=STREAK_S,
            witnesses=WITNESSES,
            doubts_last_s=DOUBTS_LAST_S,
            retries_at_least=RETRIES_AT_LEAST,
            retries_of_overloaded=RETRIES_OF_OVERLOADED,
            lease_s=self._lease_s,
        )
