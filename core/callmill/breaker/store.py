"""BreakerStore: a process's exchanges with the breaker of one API in Redis."""

from __future__ import annotations

import asyncio
import random
from importlib.resources import files

from redis.asyncio import Redis
from redis.exceptions import RedisError

from callmill.breaker.keys import Keys
from callmill.breaker.records import STREAK_S, WITNESSES, BreakerRules, BreakerState, BreakerView, Report
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
        names = dict(zip(answer[::2], answer[1::2], strict=True))
        told = {name.decode(): value for name, value in names.items()}
        return BreakerView(
            state=_STATES[told["state"]],
            epoch=told["epoch"],
            ok=told["ok"],
            bad=told["bad"],
            streak=told["streak"],
            streak_s=told["streak_ms"] / 1000,
            witnesses=told["witnesses"],
            doubts=told["doubts"],
            probe_in_s=told["probe_in_ms"] / 1000,
            probes=told["probes"],
            retries=told["retries"],
            reason=told["reason"].decode(errors="replace"),
        )

    def _arguments(self, report: Report, epoch: int) -> list[str | int | float]:
        rules = self.rules
        named: dict[str, str | int | float] = {
            "worker": self._worker,
            "epoch": epoch,
            "ok": report.ok,
            "bad": report.bad,
            "streak": report.streak,
            "streak_ms": round(report.streak_s * 1000),
            "witnesses": report.witnesses,
            "doubts": report.doubts,
            "settled": report.settled,
            "why": report.why[:_LONGEST_REASON],
            "calls": report.calls,
            "failed": report.failed,
            "retries_wanted": report.retries_wanted,
            "probes_good": report.probes_good,
            "probes_bad": report.probes_bad,
            "probes_doubtful": report.probes_doubtful,
            "probing": int(report.probing),
            "would_probe": int(report.would_probe),
            "probe_is_new": int(report.probe_is_new),
            "random": random.random(),  # noqa: S311 - spread, not secrecy; Redis always uses the same seed
            "rule_errors": rules.errors,
            "rule_calls": rules.calls,
            "rule_window_ms": round(rules.window_s * 1000),
            "rule_streak": rules.streak,
            "rule_streak_ms": round(STREAK_S * 1000),
            "rule_witnesses": WITNESSES,
            "rule_jobs": rules.jobs,
            "rule_doubts_ms": round(DOUBTS_LAST_S * 1000),
            "rule_probe_ms": round(rules.probe_s * 1000),
            "rule_cap_ms": round(rules.cap_s * 1000),
            "rule_retry_share": rules.retry_share,
            "rule_retries": RETRIES_AT_LEAST,
            "rule_retries_overloaded": RETRIES_OF_OVERLOADED,
            "rule_lease_ms": round(self._lease_s * 1000),
        }
        return [word for item in named.items() for word in item]
