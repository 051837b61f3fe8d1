"""What this process consists of: made at first use, once a process, never inherited over a fork.

A worker of ours has an engine on top of a lane host; somebody else's Celery worker that runs our plain task has the
lane host alone.
"""

from __future__ import annotations

import atexit
import os
import secrets
import socket
import threading

from callmill.config import log_format
from callmill.config.profiles import find_alerts, find_profiles, profiles_path
from callmill.config.settings import load_settings
from callmill.errors import ConfigurationError
from callmill.workers import file_descriptors
from callmill.workers.alert_sender import AlertTargets
from callmill.workers.engine import Engine
from callmill.workers.lane_host import LaneHost
from callmill.workers.lane_switch import switch
from callmill.workers.worker_options import WorkerOptions


class _Process:
    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.worker = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self.host: LaneHost | None = None
        self.engine: Engine | None = None


_this = _Process()


def host() -> LaneHost:
    """Return this process's lane host, started if there is none yet.

    Raises:
        ConfigurationError: Settings, profiles, credentials or the file descriptor limit are not right.
        ServerNotFoundError: No Redis is configured and no embedded server runs.
    """
    with _this.lock:
        if _this.host is None:
            settings = load_settings()
            profiles = find_profiles(settings)
            if not profiles:
                where = profiles_path(settings) or "config/apis.toml or ./apis.toml"
                raise ConfigurationError(
                    f"no API profile: write [apis.NAME] tables into {where}, or set CALLMILL_APIS to the file's path"
                )
            file_descriptors.raise_limit(
                sum(min(profile.max_connections, settings.calls_in_flight) for profile in profiles.values())
            )
            log_format.of_this_process["worker"] = _this.worker
            _this.host = LaneHost(_this.worker, WorkerOptions.of(settings), profiles)
            atexit.register(stop)
        return _this.host


def engine() -> Engine:
    """Return this process's engine, started if there is none yet; it raises what ``host`` raises."""
    with _this.lock:
        if _this.engine is None:
            settings = load_settings()
            alerts = AlertTargets.of(find_alerts(settings))
            _this.engine = Engine(_this.worker, WorkerOptions.of(settings), host(), switch, alerts)
        return _this.engine


def drain() -> None:
    """Let the engine drain, if there is one."""
    if _this.engine is not None:
        _this.engine.drain()


def stop() -> None:
    """End the engine and the host, if there are any."""
    with _this.lock:
        if _this.engine is not None:
            _this.engine.stop()
            _this.engine = None
        if _this.host is not None:
            _this.host.stop()
            _this.host = None


def _forget_after_fork() -> None:
    global _this  # noqa: PLW0603 - the child has neither the loop's thread nor a lock that somebody will open
    _this = _Process()


os.register_at_fork(after_in_child=_forget_after_fork)
