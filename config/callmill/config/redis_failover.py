"""Connection pools that ask Sentinels for the primary and follow it to another server.

redis-py asks when it connects. That misses an old primary that still answers, because it was frozen or cut off and the
Sentinels have not demoted it yet: so the pool of an event loop, which is what records outcomes, asks once a second.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

from redis.asyncio.sentinel import MasterNotFoundError as AsyncNotFoundError
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.asyncio.sentinel import SentinelConnectionPool as AsyncSentinelConnectionPool
from redis.asyncio.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool

from callmill.config.redis_url import SentinelUrl

ASK_EVERY_S = 1.0

_UNKNOWN = "no Sentinel that answers knows a primary for {!r} now"
"""redis-py would describe each client that it asked."""

_CUT = "the connection was closed, because another server is the primary now"


class _FollowingConnection(SentinelManagedConnection):
    """A connection that its pool may close at any moment, whatever its user is doing with it."""

    _connecting = False
    _closed_by_pool = False

    async def close_now(self) -> None:
        """Close, so that whoever uses the connection learns that it was cut off."""
        self._closed_by_pool = True
        # Without waiting: redis-py would forget then what another task has opened in the meantime.
        await self.disconnect(nowait=True)

    async def connect_to(self, address: tuple[str, int]) -> None:
        """Connect, unless the primary changes meanwhile: the pool cannot close what is not open yet."""
        self._connecting, self._closed_by_pool = True, False
        try:
            await super().connect_to(address)  # type: ignore[no-untyped-call] # redis-py's is not annotated
        finally:
            self._connecting = False
        if address != self.connection_pool.master_address:
            await self.disconnect(nowait=True)
            raise RedisConnectionError(_CUT)

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:  # noqa: FBT001, FBT002 - redis-py's signature
        """Send a command."""
        if self._connecting and not self.is_connected:
            # redis-py would connect anew in the middle of its handshake, and wait for answers to its first half.
            raise RedisConnectionError(_CUT)
        try:
            await super().send_packed_command(command, check_health)
        # What redis-py raises when there is no writer any more, and uvloop when the writer's socket is closed.
        except (AttributeError, RuntimeError) as error:
            if not self._closed_by_pool:
                raise
            raise RedisConnectionError(_CUT) from error


class _FollowingSSLConnection(_FollowingConnection, SentinelManagedSSLConnection):
    """The same over TLS."""


class AsyncFailoverPool(AsyncSentinelConnectionPool):
    """Connections to the primary, for one event loop; closes those to the Sentinels with its own."""

    def __init__(self, service: str, sentinels: AsyncSentinel, *, ssl: bool = False, **options: Any) -> None:
        connection = _FollowingSSLConnection if ssl else _FollowingConnection
        super().__init__(service, sentinels, connection_class=connection, **options)  # type: ignore[no-untyped-call] # as above
        self._asked_s = float("-inf")

    async def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:  # noqa: ARG002 - redis-py's signature
        """Return a connection to who is the primary now, as far as the Sentinels knew a second ago."""
        if self.master_address is not None and time.monotonic() - self._asked_s >= ASK_EVERY_S:
            self._asked_s = time.monotonic()
            with suppress(RedisError, OSError):  # while no Sentinel knows a primary, the one that was must do
                await self.get_master_address()
        return await super().get_connection()  # type: ignore[no-untyped-call] # redis-py's is not annotated

    async def get_master_address(self) -> Any:
        """Ask for the primary; when it is another one, close every connection to the former."""
        self.master_address = await self.sentinel_manager.discover_master(self.service_name)
        connections: list[Any] = [*self._available_connections, *self._in_use_connections]
        for connection in connections:
            # Who waits for an answer would get it from a server whose word counts no more, or not at all. A connection
            # to the new primary, which another task may have opened meanwhile, stays.
            if (connection.host, connection.port) != self.master_address:
                await connection.close_now()
        return self.master_address

    async def aclose(self) -> None:
        """Close every connection."""
        await super().aclose()
        await self.sentinel_manager.aclose()


class FailoverPool(SentinelConnectionPool):
    """Connections to the primary, for threads; closes those to the Sentinels with its own."""

    def disconnect(self, inuse_connections: bool = True) -> None:  # noqa: FBT001, FBT002 - redis-py's signature
        """Close every connection; of those that are idle, where only these are meant, none to a Sentinel."""
        super().disconnect(inuse_connections)
        if inuse_connections:
            self.sentinel_manager.close()


class _AsyncSentinels(AsyncSentinel):
    async def discover_master(self, service_name: str) -> Any:
        try:
            return await super().discover_master(service_name)
        except AsyncNotFoundError as error:
            raise AsyncNotFoundError(_UNKNOWN.format(service_name)) from error


class _Sentinels(Sentinel):
    def discover_master(self, service_name: str) -> Any:
        try:
            return super().discover_master(service_name)  # type: ignore[no-untyped-call] # as above
        except MasterNotFoundError as error:
            raise MasterNotFoundError(_UNKNOWN.format(service_name)) from error


def async_sentinels(address: SentinelUrl, options: dict[str, Any]) -> AsyncSentinel:
    """Return the Sentinels of a URL, for one event loop."""
    return _AsyncSentinels(address.sentinels, sentinel_kwargs=options)  # type: ignore[no-untyped-call] # as above


def blocking_sentinels(address: SentinelUrl, options: dict[str, Any]) -> Sentinel:
    """Return the Sentinels of a URL, for threads."""
    return _Sentinels(address.sentinels, sentinel_kwargs=options)  # type: ignore[no-untyped-call] # as above
