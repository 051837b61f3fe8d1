"""The one place where Redis clients are made.

Every client has time-outs, notices dead peers, and repeats nothing by itself: a command that was cut off may have been
carried out, and only its caller knows whether it may be sent again.
"""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from callmill.config.settings import checked_redis_url
from callmill.errors import ConfigurationError

CLIENT_NAME = "callmill"
CONNECT_TIMEOUT_S = 5
SOCKET_TIMEOUT_S = 15
"""Longer than any blocking read; those block for 5 s at most."""
HEALTH_CHECK_INTERVAL_S = 30


def connect(url: str) -> redis.asyncio.Redis:
    """Return a client for one event loop; it connects on first use and must be closed with ``aclose()``.

    Raises:
        ConfigurationError: The URL is none of Redis.
    """
    return redis.asyncio.Redis.from_url(_checked(url), retry=AsyncRetry(NoBackoff(), 0), **_options(SOCKET_TIMEOUT_S))


def connect_blocking(url: str, *, socket_timeout_s: float = SOCKET_TIMEOUT_S) -> redis.Redis:
    """Return a client for threads; it connects on first use and must be closed with ``close()``.

    ``socket_timeout_s`` is how long an answer may take.

    Raises:
        ConfigurationError: The URL is none of Redis.
    """
    return redis.Redis.from_url(_checked(url), retry=Retry(NoBackoff(), 0), **_options(socket_timeout_s))


def _checked(url: str) -> str:
    try:
        return checked_redis_url(url)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None


def _options(socket_timeout_s: float) -> dict[str, Any]:
    return {
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_timeout": socket_timeout_s,
        "socket_keepalive": True,
        "health_check_interval": HEALTH_CHECK_INTERVAL_S,
        "client_name": CLIENT_NAME,
        "decode_responses": False,
        # One shape of answers whatever redis-py's default is: 6 and 7 speak RESP2, 8 speaks RESP3.
        "protocol": 2,
    }
