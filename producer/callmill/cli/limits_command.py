"""``callmill limits``: every API, its limits and what its lane does now; and changes of them while it runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import click
from msgspec import Struct, structs
from redis.asyncio import Redis

from callmill.cli import console
from callmill.cli.duration import Duration
from callmill.cli.limiter_session import NO_API, find_api, known_apis, who, with_limiter
from callmill.cli.limits_view import api_details, hint, history_table, pause_in_words, print_apis
from callmill.errors import UsageError
from callmill.holds import release_holds
from callmill.limits.control import ControlChange, LimitControl, Pause
from callmill.overview.api_now import ApiNow, api_now
from callmill.producer import AsyncClient

_ADOPTED_WITHIN_S = 2.0
_LOOK_EVERY_S = 0.1

_api_argument = click.argument("name", metavar="API")
_key_option = click.option("--key", metavar="NAME", help="One of its credentials only.")


class _Changed(Struct, frozen=True):
    """Limits that hold from now on, and how many of the workers that serve the API keep them already."""

    api: str
    limits: tuple[str, ...]
    generation: int
    workers: int
    adopted: int


class _Paused(Struct, frozen=True):
    """What is in force; ``paused_s``: 0 running, None until resumed. ``released``: why calls were held until now."""

    api: str
    key: str | None
    paused_s: float | None
    reason: str | None
    by: str | None
    released: tuple[str, ...] = ()


@click.group("limits", invoke_without_command=True)
@console.json_option
@click.pass_context
def limits(context: click.Context, *, as_json: bool) -> None:
    """Show every API that workers serve or profiles name, or change limits while they run.

    Without a sub-command: limits, how much of them can be used, calls in flight and waiting, and pauses.
    """
    if context.invoked_subcommand is not None:
        if as_json:
            raise click.UsageError(f"write --json after {context.invoked_subcommand!r}")
        return
    rows = with_limiter(_all)
    if as_json:
        console.print_json(rows)
    elif not rows:
        click.echo(NO_API, err=True)
    else:
        print_apis(rows, console.stdout())
        if (line := hint(rows)) is not None:
            click.echo(line, err=True)


@limits.command("show")
@_api_argument
@console.json_option
def show(*, name: str, as_json: bool) -> None:
    """Show one API in full: how much of each limit can be used and why no more, the guard, every credential."""
    row = with_limiter(lambda client, redis: _one(client, redis, name))
    if as_json:
        console.print_json(row)
    else:
        console.stdout().print(api_details(row))


@limits.command("set")
@_api_argument
@click.argument("texts", metavar="LIMIT...", nargs=-1, required=True)
@console.json_option
def set_(*, name: str, texts: tuple[str, ...], as_json: bool) -> None:
    """Let these limits hold instead of all those of the profile, for every worker within a second.

    They hold until they are set again or reset, also for workers that start later: '300/minute' '64 concurrent'.
    """
    _change_limits(name, texts, as_json=as_json)


@limits.command("reset")
@_api_argument
@console.json_option
def reset(*, name: str, as_json: bool) -> None:
    """Go back to the limits of the profile."""
    _change_limits(name, None, as_json=as_json)


@limits.command("pause")
@_api_argument
@click.option("--for", "seconds", type=Duration(), metavar="TIME", help="How long: 90s, 10m, 2h; else until resumed.")
@click.option("--reason", "why", default="", metavar="TEXT", help="Shown wherever the pause is.")
@_key_option
@console.json_option
def pause(*, name: str, seconds: float | None, why: str, key: str | None, as_json: bool) -> None:
    """Start no further calls of an API; those in flight finish. A pause that lasts longer already stays."""
    act = _steering(name, key, lambda control: control.pause(seconds, why, by=who(), key=key))
    _print_pause(with_limiter(act), as_json=as_json)


@limits.command("resume")
@_api_argument
@_key_option
@console.json_option
def resume(*, name: str, key: str | None, as_json: bool) -> None:
    """End a pause, whether a person or an answer of the API began it, and release an API that is held.

    An API is held when its key was never accepted or no longer is, or its host was never reached. Releasing it lets
    calls try again.
    """

    async def work(client: AsyncClient, redis: Redis) -> _Paused:
        now = await _steering(name, key, lambda control: control.resume(by=who(), key=key))(client, redis)
        limiter = (await find_api(client, name)).limiter
        released = await release_holds(redis, limiter, key)
        return structs.replace(now, released=tuple(dict.fromkeys(held.line for held in released.values())))

    _print_pause(with_limiter(work), as_json=as_json)


@limits.command("history")
@_api_argument
@click.option("--limit", default=20, type=click.IntRange(1, 1000), show_default=True, help="Changes to show.")
@console.json_option
def history(*, name: str, limit: int, as_json: bool) -> None:
    """Show who changed or paused what and when, the latest first."""

    async def work(client: AsyncClient, redis: Redis) -> list[ControlChange]:
        return await LimitControl(redis, (await find_api(client, name)).limiter).history(limit)

    changes = with_limiter(work)
    if as_json:
        console.print_json(changes)
    elif not changes:
        click.echo(f"{name}: nobody ever changed its limits or paused it", err=True)
    else:
        console.stdout().print(history_table(changes))


async def _all(client: AsyncClient, redis: Redis) -> list[ApiNow]:
    known = await known_apis(client)
    workers = await client.connection().fleet.workers()
    return [await api_now(known[name], redis, workers) for name in sorted(known)]


async def _one(client: AsyncClient, redis: Redis, name: str) -> ApiNow:
    return await api_now(await find_api(client, name), redis, await client.connection().fleet.workers())


def _change_limits(name: str, texts: Sequence[str] | None, *, as_json: bool) -> None:
    async def work(client: AsyncClient, redis: Redis) -> _Changed:
        api = await find_api(client, name)
        generation = await LimitControl(redis, api.limiter).set(texts, by=who())
        deadline = time.monotonic() + _ADOPTED_WITHIN_S
        while True:
            now = await _one(client, redis, name)
            if now.adopted == now.workers or time.monotonic() >= deadline:
                return _Changed(name, now.limits, generation, now.workers, now.adopted)
            await asyncio.sleep(_LOOK_EVERY_S)

    changed = with_limiter(work)
    if as_json:
        console.print_json(changed)
    else:
        click.echo(f"{name}: {', '.join(changed.limits) or 'no limits'}")
        click.echo(_adoption(changed), err=True)


def _adoption(changed: _Changed) -> str:
    if not changed.workers:
        return "no worker serves it now: those that start keep these limits"
    if changed.adopted == changed.workers:
        return f"kept by all {changed.workers} workers"
    return (
        f"kept by {changed.adopted} of {changed.workers} workers so far; the others look every second: "
        f"`callmill limits show {changed.api}`"
    )


def _steering(
    name: str, key: str | None, act: Callable[[LimitControl], Awaitable[int]]
) -> Callable[[AsyncClient, Redis], Awaitable[_Paused]]:
    async def work(client: AsyncClient, redis: Redis) -> _Paused:
        if key is not None:
            _check_key(await _one(client, redis, name), key)
        control = LimitControl(redis, (await find_api(client, name)).limiter)
        await act(control)
        state = await control.current()
        now = (state.pause if key is None else state.keys.get(key)) or Pause(0.0, "", None)
        return _Paused(name, key, now.left_s, now.reason or None, now.by)

    return work


def _check_key(row: ApiNow, key: str) -> None:
    known = [known.name for known in row.keys]
    if not row.workers or key in known:
        return  # without a worker nobody can say which there are
    if not known:
        raise UsageError(f"--key: {row.api} has one credential only: leave --key out to pause or resume it")
    raise UsageError(f"--key: {row.api} has no credential {key!r}; known: {', '.join(known)}")


def _print_pause(now: _Paused, *, as_json: bool) -> None:
    if as_json:
        console.print_json(now)
        return
    what = now.api if now.key is None else f"{now.api}, key {now.key}"
    state = "running" if now.paused_s == 0 else f"paused {pause_in_words(now.paused_s, now.reason, now.by)}"
    click.echo(f"{what}: {state}{''.join(f'; was held: {line}' for line in now.released)}")
