"""How the progress of a batch is shown: in place on a terminal, as a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from callmill.cli.figures import bar, counted, printable
from callmill.cli.run_report import latency, seconds
from callmill.jobs.traffic import NORMAL
from callmill.overview.progress import Progress

_LINE_EVERY_S = 5.0
_BAR_WIDTH = 40


class ProgressView:
    """Shows progress while the context lasts; lines said meanwhile stand above it.

    Args:
        console: Where to.
        quiet: Show nothing but what is said.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._quiet = quiet
        self._next_line_s = 0.0

    def __enter__(self) -> Self:
        if self._live is not None and not self._quiet:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, progress: Progress, *, last: bool = False) -> None:
        """Show how far the batch is; ``last``: even if a line was printed just now."""
        if self._quiet:
            return
        if self._live is not None:
            self._live.update(progress_panel(progress), refresh=True)
        elif last or time.monotonic() >= self._next_line_s:
            self._next_line_s = time.monotonic() + _LINE_EVERY_S
            self.say(progress_line(progress))

    def say(self, line: str) -> None:
        """Print a line; may be called from any thread."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def progress_line(progress: Progress) -> str:
    """Return the progress in one line."""
    parts = [f"{progress.done:,} of {total_text(progress)} done", f"{progress.failed:,} failed"]
    if progress.retries:
        parts.append(counted(progress.retries, "retry", "retries"))
    if progress.throttled:
        parts.append(f"{progress.throttled:,} x 429")
    if progress.ended:
        return ", ".join([progress.state.value, *parts, seconds(progress.elapsed)])
    parts.append(f"{progress.rate:,.1f}/s")
    if progress.eta is not None:
        parts.append(f"{seconds(progress.eta)} left")
    return f"{', '.join(parts)}; {printable(progress.limited_by)}"


def progress_panel(progress: Progress, *, failed_of: str = "") -> Group:
    """Return the progress as a few lines that fit a terminal of 80 columns; ``failed_of``: why jobs failed."""
    title = Text.assemble((printable(progress.name or progress.id), "bold"), f"  {progress.id}  {progress.state.value}")
    drawn = Text.assemble(
        bar(_BAR_WIDTH, succeeded=progress.succeeded, failed=progress.failed, total=progress.total),
        f"  {_done_share(progress)}{progress.done:,} of {total_text(progress)}",
    )
    left = "" if progress.eta is None else f", {seconds(progress.eta)} left"
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    rate = progress.mean_rate if progress.ended else progress.rate
    facts.add_row("rate", f"{rate:,.1f}/s after {seconds(progress.elapsed)}{left}")
    if progress.traffic != NORMAL:
        facts.add_row("class", str(progress.traffic))
    facts.add_row("outcomes", f"{progress.succeeded:,} succeeded, {progress.failed:,} failed")
    if failed_of:
        facts.add_row("failed", printable(failed_of))
    retries = counted(progress.retries, "retry", "retries")
    facts.add_row("calls", f"{progress.calls:,}: {retries}, {progress.throttled:,} answered 429")
    latencies = (("p50", progress.p50), ("p95", progress.p95), ("p99", progress.p99))
    facts.add_row("latency", ", ".join(f"{name} {latency(value)}" for name, value in latencies))
    facts.add_row("limited by", printable(progress.limited_by))
    return Group(title, drawn, facts)


def _done_share(progress: Progress) -> str:
    """Return how much is done; cut, for all is done only when all is; empty while nobody knows of how much."""
    if not progress.sealed or not progress.total:
        return ""
    return f"{progress.done * 100 // progress.total}%  "


def total_text(progress: Progress) -> str:
    """Return the number of jobs, marked while more are still submitted."""
    return f"{progress.total:,}" if progress.sealed else f"{progress.total:,}+"
