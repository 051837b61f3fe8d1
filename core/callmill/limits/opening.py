"""A limiter of one's own: for programs that share limits with Callmill's workers, or with each other."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import uuid4

from callmill.config.limit_spec import Enforcer, parse_limit
from callmill.config.redis_connections import connect
from callmill.errors import UsageError
from callmill.limits.limiter import Limiter
from callmill.limits.rules import LimitRules


@asynccontextmanager
async def open_limiter(
    url: str,
    name: str,
    limits: Sequence[str],
    *,
    enforcer: str = "unknown",
    burst: int = 1,
    quantum: float | None = None,
) -> AsyncIterator[Limiter]:
    """A running limiter; every process that names the same Redis and API shares its limits.

    Args:
        url: Where Redis is.
        name: The API's; workers use the name of its profile.
        limits: As profiles write them: ``["500/minute", "64 concurrent"]``. All who share a name give the same.
        enforcer: How the API's server counts: bucket, sliding, fixed or unknown.
        burst: Calls that a bucket server takes at once.
        quantum: Seconds of the parts in which the server counts longer windows.

    Raises:
        UsageError: A limit or an enforcer is none.
        ConfigurationError: The URL is none of Redis.
    """
    rules = read_rules(limits, enforcer, burst, quantum)
    redis = connect(url)
    limiter = Limiter(redis, name, rules, worker=_worker_name())
    try:
        await limiter.start()
        yield limiter
    finally:
        await limiter.aclose()
        await redis.aclose()


def read_rules(limits: Sequence[str], enforcer: str, burst: int, quantum: float | None) -> LimitRules:
    """The rules that texts describe.

    Raises:
        UsageError: A limit or an enforcer is none.
    """
    try:
        specs = tuple(parse_limit(text) for text in limits)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if enforcer not in list(Enforcer):
        raise UsageError(f"{enforcer!r} is no enforcer; one of {', '.join(Enforcer)}")
    return LimitRules(limits=specs, enforcer=Enforcer(enforcer), burst=burst, quantum_s=quantum)


def _worker_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
