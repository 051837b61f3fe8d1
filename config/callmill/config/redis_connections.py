"""The one place where Redis clients are made.

Every client has time-outs, notices dead peers, and repeats nothing by itself: a command that was cut off may have been
carried out, and only its caller knows whether it may be sent again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.retry import Retry

from callmill.config.forks import in_child
from callmill.config.redis_failover import (
    AsyncFailoverPool,
    FailoverPool,
    async_sentinels,
    blocking_sentinels,
)
from callmill.config.redis_url import SentinelUrl, checked_redis_url, is_sentinel
from callmill.errors import ConfigurationError

CLIENT_NAME = "callmill"
CONNECT_TIMEOUT_S = 5
SOCKET_TIMEOUT_S = 15
"""Longer than any blocking read; those block for 5 s at most."""
HEALTH_CHECK_INTERVAL_S = 30
SENTINEL_TIMEOUT_S = 1
"""A Sentinel that takes longer is passed over for the next one."""


def connect(url: str) -> redis.asyncio.Redis:
    """Return a client for one event loop; it connects on first use and must be closed with ``aclose()``.

    In a forked child it cannot be used: create another one there.

    Raises:
        ConfigurationError: The URL is none of Redis.
    """
    client = _client(url)
    in_child(client, _cut_off)
    return client


def _client(url: str) -> redis.asyncio.Redis:
    options = {"retry": AsyncRetry(NoBackoff(), 0), **_options(SOCKET_TIMEOUT_S)}
    if not is_sentinel(_checked(url)):
        return redis.asyncio.Redis.from_url(url, **options)
    address = SentinelUrl.parse(url)
    sentinels = async_sentinels(address, sentinel_options(address) | {"retry": AsyncRetry(NoBackoff(), 0)})
    options |= _of_primary(address)
    pool = AsyncFailoverPool(address.service, sentinels, **options)
    return redis.asyncio.Redis.from_pool(pool)


def connect_blocking(url: str, *, socket_timeout_s: float = SOCKET_TIMEOUT_S) -> redis.Redis:
    """Return a client for threads; it connects on first use and must be closed with ``close()``.

    ``socket_timeout_s`` is how long an answer may take.

    Raises:
        ConfigurationError: The URL is none of Redis.
    """
    options = {"retry": Retry(NoBackoff(), 0), **_options(socket_timeout_s)}
    if not is_sentinel(_checked(url)):
        return redis.Redis.from_url(url, **options)
    address = SentinelUrl.parse(url)
    sentinels = blocking_sentinels(address, sentinel_options(address))
    options |= _of_primary(address)
    pool = FailoverPool(address.service, sentinels, **options)  # type: ignore[no-untyped-call] # redis-py's is not annotated
    return redis.Redis.from_pool(pool)


def sentinel_clients(address: SentinelUrl) -> Iterator[tuple[str, redis.Redis]]:
    """Yield each Sentinel, as host:port, with a client of it for threads that must be closed with ``close()``."""
    for host, port in address.sentinels:
        yield f"{host}:{port}", redis.Redis(host, port, **sentinel_options(address))


def sentinel_options(address: SentinelUrl) -> dict[str, Any]:
    """Return how Sentinels are spoken to, as redis-py's blocking clients take it."""
    tls = {"ssl": True, **ssl_options(address)} if address.tls else {}
    return {
        "socket_connect_timeout": SENTINEL_TIMEOUT_S,
        "socket_timeout": SENTINEL_TIMEOUT_S,
        "client_name": CLIENT_NAME,
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        **address.sentinel_login,
        **tls,
    }


def ssl_options(address: SentinelUrl) -> dict[str, Any]:
    """Return the ``ssl_...`` parameters of a URL with redis-py's types. Never empty: kombu takes that for no TLS."""
    typed = parse_url(f"redis://host?{urlencode(address.ssl)}")  # type: ignore[no-untyped-call] # redis-py's is not annotated
    return {"ssl_cert_reqs": "required", **{name: typed[name] for name in address.ssl}}


def _of_primary(address: SentinelUrl) -> dict[str, Any]:
    tls = {"ssl": True, **ssl_options(address)} if address.tls else {}
    return {"db": address.db, "username": address.username, "password": address.password, **tls}


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


def _cut_off(client: redis.asyncio.Redis) -> None:
    """Detach the sockets of an inherited client, so that nothing done with them affects the parent's."""
    pool = client.connection_pool
    pools = [pool, *(sentinel.connection_pool for sentinel in _sentinels(pool))]
    nowhere = os.open(os.devnull, os.O_RDWR)
    for connection in [one for pool in pools for one in (*pool._available_connections, *pool._in_use_connections)]:  # noqa: SLF001 - redis-py offers no other way
        writer = connection._writer  # noqa: SLF001 - as above
        inherited = None if writer is None else writer.get_extra_info("socket")
        if inherited is not None and inherited.fileno() >= 0:
            os.dup2(nowhere, inherited.fileno(), inheritable=False)
    os.close(nowhere)


def _sentinels(pool: redis.asyncio.ConnectionPool) -> list[redis.asyncio.Redis]:
    return pool.sentinel_manager.sentinels if isinstance(pool, AsyncFailoverPool) else []
