"""Where ``watch`` shows everything: the whole terminal, plain lines now and then, or JSON."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live

from callmill.cli import console
from callmill.cli.figures import in_ascii
from callmill.cli.fleet_lines import fleet_lines
from callmill.cli.fleet_now import FleetNow
from callmill.cli.fleet_screen import fleet_screen

LINES_EVERY_S = 5.0


class FleetDisplay(Protocol):
    """Shows everything while the context lasts."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self, now: FleetNow) -> None:
        """Show what was read last."""
        ...

    def resized(self) -> None:
        """Show it again: the terminal has another size."""
        ...


def display_for(output: Console, *, as_json: bool) -> FleetDisplay:
    """Return what shows everything there."""
    if as_json:
        return JsonDisplay()
    steerable = output.is_terminal and not output.is_dumb_terminal
    return ScreenDisplay(output) if steerable else LinesDisplay(output)


class ScreenDisplay:
    """The whole terminal, which is as before when the context ends."""

    def __init__(self, output: Console) -> None:
        self._console = output
        self._live = Live(console=output, screen=True, auto_refresh=False)
        self._now: FleetNow | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, now: FleetNow) -> None:
        """Draw the screen; the first time, take the terminal: what fails before is shown as a plain error."""
        if not self._live.is_started:
            self._live.start()
        self._now = now
        self._draw(now)

    def resized(self) -> None:
        """Draw it anew."""
        if self._now is not None:
            self._draw(self._now)

    def _draw(self, now: FleetNow) -> None:
        output = self._console
        lines = fleet_screen(now, output, datetime.now(UTC), height=output.height)
        if output.options.ascii_only:
            lines = [in_ascii(line) for line in lines]
        for line in lines:
            line.no_wrap = True
        self._live.update(Group(*lines), refresh=True)


class LinesDisplay:
    """Plain lines every few seconds, and at once when Redis goes away or comes back."""

    def __init__(self, output: Console) -> None:
        self._console = output
        self._next_s = 0.0
        self._away = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def show(self, now: FleetNow) -> None:
        """Print the lines if it is time to."""
        changed = bool(now.away) is not self._away
        if not changed and time.monotonic() < self._next_s:
            return
        self._next_s = time.monotonic() + LINES_EVERY_S
        self._away = bool(now.away)
        for line in fleet_lines(now, datetime.now(UTC)):
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def resized(self) -> None:
        """A line is as long as it is."""


class JsonDisplay:
    """A line of JSON each time."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def show(self, now: FleetNow) -> None:
        """Print it."""
        console.print_json(now)

    def resized(self) -> None:
        """JSON has no width."""
