"""``callmill up``: everything on this machine."""

from __future__ import annotations

import importlib.util
import queue
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack

import click

from callmill.cli import console
from callmill.cli.embedded_session import EmbeddedSession
from callmill.cli.local_fleet import LocalFleet, Program, workers
from callmill.cli.local_scaling import LOOK_EVERY_S, LocalScaling
from callmill.cli.worker_range import WorkerNumber, WorkerRange
from callmill.cli.worker_setup import checked_profiles, cores
from callmill.config.profiles import profiles_path
from callmill.config.redaction import redacted
from callmill.config.settings import Settings, load_settings
from callmill.errors import ConfigurationError, RedisUnavailableError
from callmill.overview.scaling_adviser import ScalingAdviser
from callmill.overview.workers_wanted import ScalingRules

_CHECK_EVERY_S = 1.0


@click.command("up")
@click.option(
    "--workers",
    "number",
    type=WorkerNumber(),
    metavar="N|MIN-MAX",
    help="Worker processes, or a range to choose from as the work needs; one per core if left out.",
)
@click.option("--no-dashboard", is_flag=True, help="Do not run the dashboard.")
@click.option("--dashboard-port", type=click.IntRange(1, 65535), default=5555, show_default=True)
def up(*, number: WorkerRange | None, no_dashboard: bool, dashboard_port: int) -> None:
    """Run workers and the dashboard, and a Redis server where CALLMILL_REDIS_URL is not set, until Ctrl-C.

    What dies is started again. At the end, calls in flight are finished and everything is on the disk. SIGTTIN adds a
    worker, SIGTTOU takes one away: kill -TTIN PID.
    """
    settings = load_settings()
    apis = checked_profiles(settings)
    signals = _Signals()
    say = console.log_sayer("up", settings)
    chosen = number or WorkerRange(cores(), cores(), fixed=True)
    others = []
    if not no_dashboard and importlib.util.find_spec("callmill.dashboard.command") is not None:
        others.append(Program("dashboard", ("dashboard", "--port", str(dashboard_port)), vital=False))
    programs = [*workers(chosen.least), *others]
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
        running = ", ".join(program.name for program in programs) or "no worker yet"
        say(f"running: {running}; Ctrl-C stops everything")
        scaling = LocalScaling(fleet, chosen, ScalingAdviser(ScalingRules()), others=others, say=say)
        _watch(signals, fleet, server, scaling=scaling, by_work=not chosen.fixed, say=say)
        say("stopping: calls in flight are finished first")


class _Signals:
    """What signals ask for: the end, one worker more, one fewer."""

    END = 0

    def __init__(self) -> None:
        self._asked = queue.SimpleQueue[int]()  # which a signal may meet in the middle of anything
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._asked.put(self.END))
        for number, step in ((signal.SIGTTIN, 1), (signal.SIGTTOU, -1)):
            signal.signal(number, lambda *_, step=step: self._asked.put(step))

    def next(self, within_s: float) -> int | None:
        """Wait for a signal; return ``END`` or by how many workers to change, None where none came."""
        try:
            return self._asked.get(timeout=within_s)
        except queue.Empty:
            return None


def _watch(
    signals: _Signals,
    fleet: LocalFleet,
    server: EmbeddedSession | None,
    *,
    scaling: LocalScaling,
    by_work: bool,
    say: Callable[[str], None],
) -> None:
    look_at_s = 0.0
    while (asked := signals.next(_CHECK_EVERY_S)) != _Signals.END:
        if (failure := fleet.failure) is not None:
            raise ConfigurationError(failure.removeprefix("callmill: "))
        if server is not None:
            _keep(server, say)
        if asked and by_work:
            say("the number of workers follows the work: to choose it yourself, start `callmill up --workers N`")
        elif asked:
            scaling.change_by(asked)
        if by_work and time.monotonic() >= look_at_s:
            scaling.look()
            look_at_s = time.monotonic() + LOOK_EVERY_S


def _keep(server: EmbeddedSession, say: Callable[[str], None]) -> None:
    try:
        if server.ensure():
            say("the embedded server was gone; it was started again")
    except RedisUnavailableError as error:
        say(f"callmill: {error}")


def _where(settings: Settings) -> str:
    if settings.redis_url is None:
        return f"embedded server, data under {settings.state_dir}"
    return redacted(settings.redis_url)
