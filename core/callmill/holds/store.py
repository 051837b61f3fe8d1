"""HoldStore: a process's exchanges with Redis about one credential or host of an API."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace
from redis.asyncio import Redis
from redis.exceptions import RedisError

from callmill.errors import RedisUnavailableError
from callmill.holds.fingerprint import fingerprint
from callmill.holds.keys import FINGERPRINT, HELD, SALT, Keys
from callmill.holds.records import HoldReport, HoldRules, HoldState, HoldView
from callmill.holds.scripts import EXCHANGE, ExchangeArguments, Exchanged, ExchangeKeys

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
        self._keys = ExchangeKeys(state=keys.state(subject, mark), shared=keys.shared)
        self._script = redis.register_script(EXCHANGE.text)

    async def exchange(self, report: HoldReport, *, begins: bool = False) -> HoldView:
        """Report what happened since the last exchange, and return the state; ``begins``: the worker starts.

        Raises:
            RedisUnavailableError: Redis cannot be reached or refused; whether it took the report is unknown.
        """
        told = ExchangeArguments(
            worker=self._worker,
            subject=self.subject,
            mark=self._mark,
            begins=begins,
            report=replace(report, cause=report.cause[:_LONGEST_TEXT], remedy=report.remedy[:_LONGEST_TEXT]),
            rules=self._rules,
            calls_at_once=CALLS_AT_ONCE,
            processes_at_once=PROCESSES_AT_ONCE,
            lease_ms=LEASE_MS,
        )
        call = EXCHANGE.call(self._keys, told)
        found = Exchanged(*await answer(self._script(keys=call.keys, args=call.arguments)))
        return HoldView(
            state=HoldState(found.state),
            grant=found.grant,
            next_in_s=None if found.next_ms < 0 else found.next_ms / 1000,
            line=text(found.line),
        )


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
