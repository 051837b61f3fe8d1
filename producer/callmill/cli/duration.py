"""Times as people write them on the command line: ``90s``, ``10m``, ``2h``, ``1d``, ``1h30m``."""

from __future__ import annotations

import re

import click

_UNITS_S = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_PART = r"(\d+(?:\.\d+)?)\s*(s|min|m|h|d)"
_WHOLE = re.compile(rf"\s*(?:{_PART}\s*)+")


class Duration(click.ParamType[float]):
    """A time; its value is in seconds."""

    name = "time"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds; what is no time is a usage error that shows the forms that are."""
        if not isinstance(value, str):
            return value
        if not _WHOLE.fullmatch(value.lower()):
            self.fail(f"{value!r} is no time; write '90s', '10m', '2h', '1d' or '1h30m'", param, ctx)
        return sum(float(amount) * _UNITS_S[unit] for amount, unit in re.findall(_PART, value.lower()))
