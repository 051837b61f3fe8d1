"""The embedded server: a Redis-compatible server of this user, for machines without Redis.

A plain daemon on 127.0.0.1 with a password, an append-only file and no eviction; it outlives whoever started it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from callmill.config.server_home import ServerFile, ServerHome
from callmill.config.settings import Settings
from callmill.errors import ServerNotFoundError


@dataclass(frozen=True)
class EmbeddedServer:
    """A running embedded server.

    Attributes:
        url: Its URL, with the password.
        pid: Its process id.
        owned: Whether the call that returned this object started it, so that ``stop`` ends it.
    """

    url: str = field(repr=False)
    pid: int
    owned: bool
    _state_dir: Path = field(repr=False)

    def stop(self) -> None:
        """End the server with everything on disk; does nothing unless it is ``owned`` and still the same. Idempotent.

        Raises:
            RedisUnavailableError: It did not end in time.
        """
        if self.owned:
            ServerHome(self._state_dir).stop(self._as_file)

    @property
    def is_homeless(self) -> bool:
        """Whether it lives, but the directory that it works on was removed, so that nobody else finds it."""
        return ServerHome(self._state_dir).has_lost(self._as_file)

    @property
    def _as_file(self) -> ServerFile:
        return ServerFile(self.url, self.pid, 0.0)


def start(settings: Settings) -> EmbeddedServer:
    """Return the running embedded server, started if there is none; it outlives this process.

    Raises:
        ConfigurationError: The state directory cannot be used, or $CALLMILL_REDIS_SERVER names no program.
        ServerNotFoundError: There is no server program on this machine.
        RedisUnavailableError: It does not start, or does not answer; the message has the end of its log.
    """
    server, started = ServerHome(settings.state_dir).start()
    return EmbeddedServer(server.url, server.pid, started, settings.state_dir)


def running_url(settings: Settings) -> str | None:
    """Return the URL of the embedded server if it runs, else None."""
    return ServerHome(settings.state_dir).running_url()


def has_data(settings: Settings) -> bool:
    """Say whether an embedded server has ever run here, so that it may have left data.

    Raises:
        ConfigurationError: The state directory may not be looked into.
    """
    return ServerHome(settings.state_dir).has_data


def redis_url(settings: Settings) -> str:
    """Return the URL of the ledger's server: the one that is set, else the running embedded server's.

    Raises:
        ServerNotFoundError: There is neither.
    """
    url = settings.redis_url or running_url(settings)
    if url is None:
        raise ServerNotFoundError(
            "no Redis server: set CALLMILL_REDIS_URL to one, or start the embedded server with `callmill up`"
        )
    return url


def broker_url(settings: Settings) -> str:
    """Return the URL of the broker: the one that is set, else the ledger's.

    Raises:
        ServerNotFoundError: There is neither.
    """
    return settings.broker_url or redis_url(settings)


def limiter_url(settings: Settings) -> str:
    """Return the URL of the limiter's server: the one that is set, else the ledger's.

    Raises:
        ServerNotFoundError: There is neither.
    """
    return settings.limiter_url or redis_url(settings)
