"""The click command of the simulator; ``callmill simulate`` and ``python -m callmill.simulator`` are this one."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

import click

from callmill.config.limit_spec import parse_limit
from callmill.errors import ConfigurationError, OutsideError
from callmill.simulator.latency import parse_duration_s, parse_latency
from callmill.simulator.options import EnforcerKind, HeaderStyle, SimulatorOptions
from callmill.simulator.server import run
from callmill.simulator.tokens import Charging, parse_token_draw


class _Parsed(click.ParamType[Any]):
    """A value read by a function that raises ValueError."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _choice(kind: type[StrEnum]) -> click.Choice[str]:
    return click.Choice([member.value for member in kind])


_RATE = click.FloatRange(0, 1)
_DEFAULTS = SimulatorOptions()


@click.command(name="simulate", context_settings={"show_default": True})
@click.option("--host", default=_DEFAULTS.host, help="Address to listen on.")
@click.option("--port", default=8800, type=click.IntRange(0, 65535), help="Port to listen on; 0 takes a free one.")
@click.option(
    "--limit",
    "limits",
    multiple=True,
    type=_Parsed("limit", parse_limit),
    help="A limit: '200/second', '500/minute', '200000 tokens/minute', '64 concurrent'. Repeatable; all hold together.",
)
@click.option(
    "--enforcer", default=_DEFAULTS.enforcer.value, type=_choice(EnforcerKind), help="How limits are counted."
)
@click.option("--burst", type=int, help="Requests that a bucket holds (1 if left out), or nginx's burst (0).")
@click.option(
    "--latency",
    default=str(_DEFAULTS.latency),
    type=_Parsed("latency", parse_latency),
    help="Time to each answer: '20ms', '10ms-50ms', 'lognormal:50ms,p99=400ms'.",
)
@click.option(
    "--tokens",
    type=_Parsed("tokens", parse_token_draw),
    help="What calls cost in tokens: mean and variation, such as '1000:1'. What they ask for if left out.",
)
@click.option(
    "--charge", default=_DEFAULTS.charge.value, type=_choice(Charging), help="When limits in tokens are charged."
)
@click.option("--error-rate", default=0.0, type=_RATE, help="Share of calls answered with an error status.")
@click.option(
    "--error-status",
    "error_statuses",
    multiple=True,
    default=_DEFAULTS.error_statuses,
    type=click.IntRange(400, 599),
    help="Statuses of these answers. Repeatable.",
)
@click.option("--reset-rate", default=0.0, type=_RATE, help="Share of calls whose connection is reset.")
@click.option("--hang-rate", default=0.0, type=_RATE, help="Share of calls that are never answered.")
@click.option("--malformed-rate", default=0.0, type=_RATE, help="Share of calls whose answer is broken.")
@click.option(
    "--hang",
    "hang_s",
    default=f"{_DEFAULTS.hang_s:g}s",
    type=_Parsed("duration", parse_duration_s),
    help="How long a call that is never answered is held.",
)
@click.option(
    "--headers", default=_DEFAULTS.headers.value, type=_choice(HeaderStyle), help="Rate limit headers of the answers."
)
@click.option("--seed", type=int, help="Repeats the latencies, costs and faults of an earlier run.")
@click.option("--log", type=click.Path(dir_okay=False, path_type=Path), help="File for one JSON line per call.")
def simulate(*, enforcer: str, headers: str, charge: str, **options: Any) -> None:
    """Run an API server with strict limits and with faults on purpose.

    It answers every method and path. GET /stats tells what it counted, POST /reset starts anew.
    """
    try:
        kinds: Any = {"enforcer": EnforcerKind(enforcer), "headers": HeaderStyle(headers), "charge": Charging(charge)}
        exit_code = run(SimulatorOptions(**kinds, **options))
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error
    except OutsideError as error:
        raise click.ClickException(str(error)) from error
    raise SystemExit(exit_code)
