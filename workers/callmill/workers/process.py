"""What this process consists of: made at first use, once a process, never inherited over a fork.

A worker of ours has an engine on top of a lane host; somebody else's Celery worker that runs our plain task has the
lane host alone.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import socket
import threading
from collections.abc import Mapping

from celery.worker import state

from callmill.config import log_format, open_files
from callmill.config.profiles import ApiProfile, find_alerts, find_profiles, profiles_path
from callmill.config.settings import Settings, load_settings
from callmill.errors import ConfigurationError
from callmill.workers import file_descriptors
from callmill.workers.alert_sender import AlertTargets
from callmill.workers.engine import Engine
from callmill.workers.lane_host import LaneHost
from callmill.workers.lane_switch import switch
from callmill.workers.memory_limits import return_large_pieces
from callmill.workers.worker_options import WorkerOptions

log = logging.getLogger(__name__)


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
            log_format.of_this_process["worker"] = _this.worker
            options = WorkerOptions.of(settings, calls_in_flight=_calls_in_flight(settings, profiles))
            _this.host = LaneHost(_this.worker, options, profiles, while_waiting=state.maybe_shutdown)
            atexit.register(stop)
        return _this.host


def engine() -> Engine:
    """Return this process's engine, started if there is none yet; it raises what ``host`` raises."""
    with _this.lock:
        if _this.engine is None:
            return_large_pieces()
            settings = load_settings()
            alerts = AlertTargets.of(find_alerts(settings))
            options = WorkerOptions.of(settings)
            _this.engine = Engine(_this.worker, options, host(), switch, alerts)
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


def _calls_in_flight(settings: Settings, profiles: Mapping[str, ApiProfile]) -> int:
    wanted = [min(profile.max_connections, settings.calls_in_flight) for profile in profiles.values()]
    limit = open_files.raise_soft_limit()
    calls = file_descriptors.calls_at_once(wanted, limit)
    if calls.possible < calls.wanted:
        log.warning(
            "this process may open %d files but needs %d: at most %d calls of one API at once instead of %d; %s",
            *(limit, calls.files, calls.possible, calls.wanted, file_descriptors.REMEDY),
            extra={"action": "few_files"},
        )
    return calls.possible


def _forget_after_fork() -> None:
    global _this  # noqa: PLW0603 - the child has neither the loop's thread nor a lock that somebody will open
    _this = _Process()


os.register_at_fork(after_in_child=_forget_after_fork)
