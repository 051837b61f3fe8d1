"""The engine of this process: made at first use, once a process, never inherited over a fork."""

from __future__ import annotations

import os
import threading

from callmill.config.profiles import find_profiles, profiles_path
from callmill.config.settings import load_settings
from callmill.errors import ConfigurationError
from callmill.workers import file_descriptors
from callmill.workers.engine import Engine
from callmill.workers.lane_switch import switch
from callmill.workers.worker_options import WorkerOptions


class _Process:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.engine: Engine | None = None


_this = _Process()


def engine() -> Engine:
    """Return this process's engine, started if there is none yet.

    Raises:
        ConfigurationError: Settings, profiles, credentials or the file descriptor limit are not right.
        ServerNotFoundError: No Redis is configured and no embedded server runs.
    """
    with _this.lock:
        if _this.engine is None:
            settings = load_settings()
            profiles = find_profiles(settings)
            if not profiles:
                where = profiles_path(settings) or "config/apis.toml or ./apis.toml"
                raise ConfigurationError(
                    f"no API profile: write [apis.NAME] tables into {where}, or set CALLMILL_APIS to the file's path"
                )
            connections = sum(min(profile.max_connections, settings.calls_in_flight) for profile in profiles.values())
            file_descriptors.raise_limit(connections)
            _this.engine = Engine(WorkerOptions.of(settings), profiles, switch)
        return _this.engine


def drain() -> None:
    """Let the engine drain, if there is one."""
    if _this.engine is not None:
        _this.engine.drain()


def stop() -> None:
    """End the engine, if there is one."""
    with _this.lock:
        if _this.engine is not None:
            _this.engine.stop()
            _this.engine = None


def _forget_after_fork() -> None:
    global _this  # noqa: PLW0603 - the child has neither the loop's thread nor a lock that somebody will open
    _this = _Process()


os.register_at_fork(after_in_child=_forget_after_fork)
