"""``callmill up``: everything on this machine."""

from __future__ import annotations

import importlib.util
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack

import click

from callmill.cli import console
from callmill.cli.embedded_session import EmbeddedSession
from callmill.cli.local_fleet import LocalFleet, Program, workers
from callmill.cli.worker_setup import checked_profiles, cores
from callmill.config.profiles import profiles_path
from callmill.config.redaction import redacted
from callmill.config.settings import Settings, load_settings
from callmill.errors import ConfigurationError, RedisUnavailableError

_CHECK_EVERY_S = 1.0


@click.command("up")
@click.option("--workers", "number", type=click.IntRange(1, 1024), help="Worker processes; one per core if left out.")
@click.option("--no-dashboard", is_flag=True, help="Do not run the dashboard.")
@click.option("--dashboard-port", type=click.IntRange(1, 65535), default=5555, show_default=True)
def up(*, number: int | None, no_dashboard: bool, dashboard_port: int) -> None:
    """Run workers and the dashboard, and a Redis server where CALLMILL_REDIS_URL is not set, until Ctrl-C.

    What dies is started again. At the end, calls in flight are finished and everything is on the disk.
    """
    settings = load_settings()
    apis = checked_profiles(settings)
    stop = threading.Event()
    for which in (signal.SIGINT, signal.SIGTERM):
        signal.signal(which, lambda *_: stop.set())
    say = console.log_sayer("up", settings)
    programs = workers(number or cores())
    if not no_dashboard and importlib.util.find_spec("callmill.dashboard.command") is not None:
        programs.append(Program("dashboard", ("dashboard", "--port", str(dashboard_port)), vital=False))
    with ExitStack() as stack:
        server = None
        if settings.redis_url is None:
            server = stack.enter_context(EmbeddedSession(settings, exclusively=True))
        fleet = LocalFleet(programs, grace_s=settings.shutdown_grace_s, say=say)
        stack.callback(fleet.stop)
        # While everything stops, a further Ctrl-C means: at once.
        stack.callback(signal.signal, signal.SIGINT, signal.default_int_handler)
        fleet.start()
        say(f"redis: {_where(settings)}")
        say(f"apis: {', '.join(sorted(apis))} ({profiles_path(settings)})")
        say(f"running: {', '.join(program.name for program in programs)}; Ctrl-C stops everything")
        _watch(stop, fleet, server, say)
        say("stopping: calls in flight are finished first")


def _watch(
    stop: threading.Event, fleet: LocalFleet, server: EmbeddedSession | None, say: Callable[[str], None]
) -> None:
    while not stop.wait(_CHECK_EVERY_S):
        if (failure := fleet.failure) is not None:
            raise ConfigurationError(failure.removeprefix("callmill: "))
        try:
            if server is not None and server.ensure():
                say("the embedded server was gone; it was started again")
        except RedisUnavailableError as error:
            say(f"callmill: {error}")


def _where(settings: Settings) -> str:
    if settings.redis_url is None:
        return f"embedded server, data under {settings.state_dir}"
    return redacted(settings.redis_url)
