"""HoldStore: a process's exchanges with Redis about one credential or host of an API."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from callmill.errors import RedisUnavailableError
from callmill.holds.fingerprint import fingerprint
from callmill.holds.keys import FINGERPRINT, HELD, SALT, Keys
from callmill.holds.records import HoldReport, HoldRules, HoldState, HoldView

COMMAND_TIMEOUT_S = 2.0
CALLS_AT_ONCE = 2
"""Calls that a process may have in flight with a subject that has not worked yet."""

PROCESSES_AT_ONCE = 4
"""Processes that may have such calls."""

LEASE_MS = 5_000
"""How long a process keeps its share of them without an exchange."""

_LONGEST_TEXT = 200


class HoldStore:
    """One subject of an API, as seen by one worker.

    Args:
        redis: The limiter's server.
        api: The API.
        subject: ``HOST``, or ``key:NAME``.
        mark: Its fingerprint.
        rules: When it is held.
        worker: The reporting worker.
    """

    def __init__(self, redis: Redis, api: str, subject: str, mark: str, rules: HoldRules, *, worker: str) -> None:
        self.subject = subject
        self._mark = mark
        self._rules = rules
        self._worker = worker
        keys = Keys(api)
        self._keys = [keys.state(subject, mark), keys.shared]
        self._script = redis.register_script((files("callmill.holds") / "lua/exchange.lua").read_text())

    async def exchange(self, report: HoldReport, *, begins: bool = False) -> HoldView:
        """Report what happened since the last exchange, and return the state; ``begins``: the worker starts.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused; whether it took the report is unknown.
        """
        state, grant, next_ms, line = await answer(self._script(keys=self._keys, args=self._arguments(report, begins)))
        return HoldView(
            state=HoldState(state),
            grant=grant,
            next_in_s=None if next_ms < 0 else next_ms / 1000,
            line=text(line),
        )

    def _arguments(self, report: HoldReport, begins: bool) -> list[str | int]:  # noqa: FBT001 - one of its arguments
        rules = self._rules
        return [
            *(self._worker, self.subject, self._mark, int(begins)),
            *(report.good, report.plain, report.hard, report.soft, report.streak),
            *(int(report.wants), int(report.trying), int(report.tried), int(report.guilty)),
            *(report.cause[:_LONGEST_TEXT], report.remedy[:_LONGEST_TEXT]),
            *(rules.hard, rules.all, rules.streak, rules.first_ms, rules.cap_ms, rules.again_ms),
            *(CALLS_AT_ONCE, PROCESSES_AT_ONCE, LEASE_MS, int(report.asked), round(report.good_age_s * 1000)),
        ]


async def open_stores(
    redis: Redis, api: str, subjects: Mapping[str, tuple[Sequence[str], HoldRules]], *, worker: str
) -> list[HoldStore]:
    """Return a store for each subject, given as its parts and its rules.

    Raises:
        RedisUnavailableError: Redis cannot be reached or refused.
    """
    shared = Keys(api).shared
    pipeline = redis.pipeline(transaction=True)
    pipeline.hsetnx(shared, SALT, secrets.token_hex(16))
    pipeline.hgetall(shared)
    known = {text(name): text(value) for name, value in (await answer(pipeline.execute()))[1].items()}
    salt = bytes.fromhex(known[SALT])

    def open_all() -> list[HoldStore]:
        return [
            HoldStore(redis, api, subject, fingerprint(salt, *parts), rules, worker=worker)
            for subject, (parts, rules) in subjects.items()
        ]

    stores = await asyncio.to_thread(open_all)
    # What people released stays counted: workers with another profile may have a credential of that name.
    gone = [name for name in known if name.startswith((FINGERPRINT, HELD)) and name.partition(":")[2] not in subjects]
    if gone:
        await answer(redis.hdel(shared, *gone))
    return stores


async def answer(pending: Awaitable[Any]) -> Any:
    """Await an answer from Redis, no longer than the command timeout.

    Raises:
        RedisUnavailableError: Redis cannot be reached or refused.
    """
    try:
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            return await pending
    except (RedisError, OSError) as error:  # TimeoutError is an OSError
        raise RedisUnavailableError(f"Redis: {type(error).__name__}: {error}") from error


def text(value: bytes | str) -> str:
    """Return an answer of Redis as text."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value
