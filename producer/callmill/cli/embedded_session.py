"""EmbeddedSession: the embedded server for as long as a command of ours needs it; the last user stops it.

Every user holds a shared lock on a file. Who leaves tries to make it exclusive: then nobody else is left. So a server
whose starter was killed is still stopped by whoever comes after.
"""

from __future__ import annotations

import fcntl
import logging
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from callmill.config.embedded_server import EmbeddedServer, has_data, running_url, start
from callmill.config.file_lock import is_locked
from callmill.config.server_home import make_state_dir, usable
from callmill.config.settings import Settings
from callmill.errors import UsageError

log = logging.getLogger(__name__)

_USERS = "users.lock"
_UP = "up.lock"


def up_is_running(settings: Settings) -> bool:
    """Say whether a ``callmill up`` of this user works on the same embedded server."""
    return is_locked(settings.state_dir / _UP)


def data_of_before(settings: Settings) -> AbstractContextManager[object]:
    """Return a context that runs the embedded server if earlier commands left data in it."""
    return EmbeddedSession(settings) if settings.redis_url is None and has_data(settings) else nullcontext()


class EmbeddedSession:
    """The use of the embedded server as a context.

    Args:
        settings: Where it lives.
        exclusively: Be the one ``callmill up`` of this server.

    Raises:
        UsageError: Another ``callmill up`` is at work; on entering.
        ConfigurationError: The state directory cannot be used; on entering.
    """

    def __init__(self, settings: Settings, *, exclusively: bool = False) -> None:
        self._settings = settings
        self._exclusively = exclusively
        self._descriptors: list[int] = []
        self._server: EmbeddedServer | None = None
        self._told = False

    def __enter__(self) -> Self:
        make_state_dir(self._settings.state_dir)
        if self._exclusively and not self._lock(self._settings.state_dir / _UP, fcntl.LOCK_EX | fcntl.LOCK_NB):
            raise UsageError("`callmill up` runs already for this user: stop it first, or set CALLMILL_REDIS_URL")
        self._lock(self._settings.state_dir / _USERS, fcntl.LOCK_SH)
        try:
            self._server = start(self._settings)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._server is not None and self._is_last():
                replace(self._server, owned=True).stop()
        finally:
            self._close()

    def ensure(self) -> bool:
        """Start the server again if it is gone; True when that was needed."""
        if running_url(self._settings) is not None:
            return False
        if self._server is not None and self._server.is_homeless:
            if not self._told:
                log.warning(
                    "%s was removed while the embedded server worked on it: what runs can finish, but not be continued",
                    self._settings.state_dir,
                    extra={"action": "server_homeless"},
                )
            self._told = True
            return False
        self._server = start(self._settings)
        return True

    def _lock(self, path: Path, kind: int) -> bool:
        with usable(self._settings.state_dir):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, kind)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._descriptors.append(descriptor)
        return True

    def _is_last(self) -> bool:
        try:
            fcntl.flock(self._descriptors[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _close(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
