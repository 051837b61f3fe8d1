"""The simulator as a server: sockets, signals, the log's rhythm."""

from __future__ import annotations

import asyncio
import gc
import secrets
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import msgspec

from callmill.config import open_files
from callmill.errors import ConfigurationError
from callmill.simulator.call_log import CallLog, FileLog, NoLog
from callmill.simulator.connection import HttpConnection
from callmill.simulator.options import SimulatorOptions
from callmill.simulator.simulation import Simulation
from callmill.simulator.wire import refuse

_new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
with suppress(ImportError):  # Not built for every platform; asyncio's own loop does the same, slower.
    from uvloop import new_event_loop as _new_event_loop

LOG_FLUSH_S = 0.1
_BACKLOG = 4096


def steady_clock_ns() -> Callable[[], int]:
    """Return a clock that starts at the Unix time and then runs on the monotonic clock, so it never goes back."""
    offset_ns = time.time_ns() - time.monotonic_ns()
    monotonic_ns = time.monotonic_ns
    return lambda: offset_ns + monotonic_ns()


async def serve(options: SimulatorOptions, ready: Callable[[str], None]) -> None:
    """Serve until cancelled; call ``ready`` with the base URL when connections are accepted.

    Raises:
        ConfigurationError: The address cannot be bound, or the log not opened.
        OutsideError: The log cannot be written any more.
    """
    seed = options.seed if options.seed is not None else secrets.randbits(32)
    log: CallLog = NoLog() if options.log is None else FileLog(options.log)
    connections: set[HttpConnection] = set()
    try:
        simulation = Simulation(options, seed, steady_clock_ns(), log)
        server = await _listen(
            options, lambda: HttpConnection(simulation.handle, refuse=refuse, connections=connections)
        )
        try:
            ready(_base_url(options.host, server.sockets[0].getsockname()[1]))
            while True:
                await asyncio.sleep(LOG_FLUSH_S)
                log.flush()
        finally:
            server.close()
            for connection in list(connections):
                connection.close()
            await server.wait_closed()
    finally:
        log.close()


def run(options: SimulatorOptions) -> int:
    """Serve until SIGTERM or SIGINT and return exit code 0; print the URL and the configuration when ready.

    Raises:
        ConfigurationError: As ``serve``.
        OutsideError: As ``serve``.
    """
    open_files.raise_soft_limit()  # a connection is a file, and the usual soft limit is 1024
    if options.seed is None:
        options = msgspec.structs.replace(options, seed=secrets.randbits(32))
    with asyncio.Runner(loop_factory=_new_event_loop) as runner:
        runner.run(_serve_until_signal(options))
    return 0


async def _serve_until_signal(options: SimulatorOptions) -> None:
    def announce(url: str) -> None:
        sys.stdout.write(f"Simulator on {url}\n{options.describe()}\n")
        sys.stdout.flush()
        # What lives now lives until the end; scanning it again would only delay answers.
        gc.freeze()

    serving = asyncio.ensure_future(serve(options, announce))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    try:
        await serving
    except asyncio.CancelledError:
        return


async def _listen(options: SimulatorOptions, make: Callable[[], HttpConnection]) -> asyncio.Server:
    try:
        return await asyncio.get_running_loop().create_server(make, options.host, options.port, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigurationError(
            f"--host {options.host} --port {options.port}: {error.strerror or error}; choose another address or port"
        ) from error


def _base_url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
