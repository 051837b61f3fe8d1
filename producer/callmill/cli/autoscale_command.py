"""``callmill autoscale``: how many worker processes the work needs; told, served, or followed."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from datetime import UTC, datetime

import click
from msgspec.structs import replace

from callmill.cli import console
from callmill.cli.autoscale_view import advice_line, advice_table
from callmill.cli.duration import Duration
from callmill.cli.local_fleet import LocalFleet, workers
from callmill.cli.local_scaling import LOOK_EVERY_S, LocalScaling
from callmill.cli.overview_session import open_overview
from callmill.cli.worker_range import MOST_WORKERS, WorkerRange
from callmill.cli.worker_setup import checked_profiles, cores
from callmill.config.settings import load_settings
from callmill.dashboard.scaling_server import serve_scaling
from callmill.dashboard.scaling_site import ScalingReader
from callmill.errors import ConfigurationError, OutsideError
from callmill.overview.scaling_adviser import ScalingAdvice, ScalingAdviser
from callmill.overview.scaling_window import DOWN_AFTER_S
from callmill.overview.workers_wanted import FleetLoad, ScalingRules

_WITHIN_S = ScalingRules().target_wait_s


@click.command("autoscale")
@click.option("--min", "least", type=click.IntRange(0, MOST_WORKERS), default=0, show_default=True, help="Never fewer.")
@click.option("--max", "most", type=click.IntRange(1, MOST_WORKERS), help="Never more; with --local, one per core.")
@click.option(
    "--within", "within_s", type=Duration(), default=_WITHIN_S, metavar="TIME",
    help=f"What waits is to begin within it, where limits allow; {_WITHIN_S:g}s if left out.",
)  # fmt: skip
@click.option(
    "--down-after", "down_after_s", type=Duration(), default=DOWN_AFTER_S, metavar="TIME",
    help=f"Fewer when fewer were enough all through it; {DOWN_AFTER_S:g}s if left out.",
)  # fmt: skip
@click.option("--watch", is_flag=True, help="Say it again and again, until Ctrl-C.")
@click.option(
    "--serve", "port", type=click.IntRange(0, 65535), metavar="PORT", help="Serve it over HTTP; 0: a free one."
)
@click.option("--address", default="127.0.0.1", show_default=True, help="Address to serve on.")
@click.option("--local", is_flag=True, help="Run as many workers on this machine, until Ctrl-C.")
@console.json_option
def autoscale(
    *,
    least: int,
    most: int | None,
    within_s: float,
    down_after_s: float,
    watch: bool,
    port: int | None,
    address: str,
    local: bool,
    as_json: bool,
) -> None:
    """Say how many worker processes the work needs and its limits can use, and why.

    With --serve, autoscalers get it at /workers-wanted (JSON) and /metrics (Prometheus). With --local, it is done.
    """
    _check(least, most, within_s, modes=watch + local + (port is not None))
    rules = ScalingRules(least=least, most=most, target_wait_s=within_s)
    adviser = ScalingAdviser(rules, down_after_s)
    if local:
        everywhere = ScalingAdviser(replace(rules, least=0, most=None), down_after_s)
        _follow_locally(WorkerRange(least, most or max(1, least, cores())), everywhere)
    elif port is not None:
        reader = ScalingReader(_load, adviser)
        asyncio.run(serve_scaling(reader, port, address, lambda url: click.echo(f"Workers wanted on {url}")))
    elif watch:
        asyncio.run(_watch(adviser, as_json=as_json))
    else:
        # Asked once, nobody knows what was wanted before.
        advice = ScalingAdviser(rules, 0.0).advise(asyncio.run(_load()), 0.0)
        if as_json:
            console.print_json(advice)
        else:
            console.stdout().print(advice_table(advice))


def _check(least: int, most: int | None, within_s: float, *, modes: int) -> None:
    if modes > 1:
        raise click.UsageError("choose one of --watch, --serve and --local")
    if most is not None and most < least:
        raise click.UsageError(f"--max {most} is less than --min {least}")
    if within_s <= 0:
        raise click.UsageError("--within: more than 0")


async def _load() -> FleetLoad:
    # Opened anew each time: an embedded server may come back at another address.
    async with open_overview() as overview:
        return await overview.load()


async def _watch(adviser: ScalingAdviser, *, as_json: bool) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    advice = adviser.advise(await _load(), time.monotonic())
    _show(None, advice, as_json=as_json)
    while not await _stopped(stop):
        before = advice
        try:
            advice = adviser.advise(await _load(), time.monotonic())
        except OutsideError as error:
            console.say_line(f"callmill: {error}")
        else:
            _show(before, advice, as_json=as_json)


async def _stopped(stop: asyncio.Event) -> bool:
    try:
        return await asyncio.wait_for(stop.wait(), LOOK_EVERY_S)
    except TimeoutError:
        return False


def _show(before: ScalingAdvice | None, advice: ScalingAdvice, *, as_json: bool) -> None:
    if as_json:
        console.print_json(advice)
    elif before is None or (before.wanted, before.why) != (advice.wanted, advice.why):
        click.echo(advice_line(advice, datetime.now(UTC)))


def _follow_locally(number: WorkerRange, adviser: ScalingAdviser) -> None:
    settings = load_settings()
    checked_profiles(settings)
    stop = threading.Event()
    for which in (signal.SIGINT, signal.SIGTERM):
        signal.signal(which, lambda *_: stop.set())
    asyncio.run(_load())  # without a Redis there is nothing to follow
    say = console.log_sayer("autoscale", settings)
    fleet = LocalFleet(workers(number.least), grace_s=settings.shutdown_grace_s, say=say)
    scaling = LocalScaling(fleet, number, adviser, say=say)
    try:
        fleet.start()
        say(f"from {number.least} to {number.most} workers, as the work needs; Ctrl-C stops them")
        while True:
            scaling.look()
            if stop.wait(LOOK_EVERY_S):
                break
            if (failure := fleet.failure) is not None:
                raise ConfigurationError(failure.removeprefix("callmill: "))
        say("stopping: calls in flight are finished first")
    finally:
        # While everything stops, a further Ctrl-C means: at once.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        fleet.stop()
