"""A limiter of one's own: for programs that share limits with Callmill's workers, or with each other."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from uuid import uuid4

from callmill.config.limit_spec import Enforcer
from callmill.config.public_api import API_NAME
from callmill.config.redis_connections import connect
from callmill.errors import UsageError
from callmill.limits.control import checked
from callmill.limits.limiter import Limiter
from callmill.limits.rules import KeyRules, LimitRules

_KEY = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SHORTEST_QUANTUM_S, _LONGEST_QUANTUM_S = 0.1, 3600.0


@asynccontextmanager
async def open_limiter(
    url: str,
    name: str,
    limits: Sequence[str],
    *,
    enforcer: str = "unknown",
    burst: int = 1,
    quantum: float | None = None,
    guard: float | None = None,
    keys: Sequence[str] = (),
) -> AsyncIterator[Limiter]:
    """A running limiter; every process that names the same Redis and API shares its limits.

    Without Redis it is there all the same, and calls wait until Redis is. Whoever waits at its end is cancelled.

    Args:
        url: Where Redis is.
        name: The API's; workers use the name of its profile.
        limits: As profiles write them: ``["500/minute", "64 concurrent"]``. All who share a name give the same.
        enforcer: How the API's server counts: bucket, sliding, fixed or unknown.
        burst: Calls that a bucket server takes at once.
        quantum: Seconds of the parts in which the server counts longer windows.
        guard: Seconds by which calls may miss their plan on the way to the server; None: as measured.
        keys: What people call the credentials of a pool; ``Slot.key`` is the place of the one to use.

    Raises:
        UsageError: The name, a limit or an option is none.
        ConfigurationError: The URL is none of Redis.
    """
    rules = read_rules(limits, enforcer=enforcer, burst=burst, quantum=quantum, guard=guard, keys=keys)
    if not API_NAME.fullmatch(name):
        raise UsageError(f"{name[:200]!r} is no name of an API: up to 100 letters, digits, '-' and '_'")
    async with aclosing(connect(url)) as redis:
        limiter = Limiter(redis, name, rules, worker=_worker_name())
        try:
            await limiter.start()
            yield limiter
        finally:
            await limiter.aclose()


def read_rules(
    limits: Sequence[str],
    *,
    enforcer: str = "unknown",
    burst: int = 1,
    quantum: float | None = None,
    guard: float | None = None,
    keys: Sequence[str] = (),
) -> LimitRules:
    """The rules that texts and numbers describe; see ``open_limiter``.

    Raises:
        UsageError: A limit or an option is none.
    """
    if isinstance(limits, str) or not limits:
        raise UsageError(f"limits: {limits!r}; write a list of one or more, such as ['500/minute', '64 concurrent']")
    if enforcer not in list(Enforcer):
        raise UsageError(f"{enforcer!r} is no enforcer; one of {', '.join(Enforcer)}")
    if burst < 1 or (burst > 1 and enforcer != Enforcer.BUCKET):
        raise UsageError(f"burst {burst}: at least 1, and above 1 only with enforcer 'bucket'")
    if quantum is not None and not _SHORTEST_QUANTUM_S <= quantum <= _LONGEST_QUANTUM_S:
        raise UsageError(f"quantum {quantum}: {_SHORTEST_QUANTUM_S:g} to {_LONGEST_QUANTUM_S:g} seconds")
    if guard is not None and not 0 <= guard <= _LONGEST_QUANTUM_S:
        raise UsageError(f"guard {guard}: 0 to {_LONGEST_QUANTUM_S:g} seconds")
    return LimitRules(
        limits=checked(limits),
        enforcer=Enforcer(enforcer),
        burst=burst,
        guard_s=guard,
        quantum_s=quantum,
        keys=_credentials(keys) or (KeyRules(),),
    )


def _credentials(names: Sequence[str]) -> tuple[KeyRules, ...]:
    if isinstance(names, str) or len(set(names)) < len(names) or not all(map(_KEY.fullmatch, names)):
        raise UsageError(f"keys: {names!r}; write a list of names that differ: 1 to 64 letters, digits, '_', '.', '-'")
    return tuple(KeyRules(name) for name in names)


def _worker_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
