"""What ``callmill limits`` shows: the table of all APIs, one API in full, the history."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from callmill.cli.figures import printable
from callmill.cli.run_report import latency, seconds
from callmill.limits.bound import Guard
from callmill.limits.control import ControlChange
from callmill.overview.api_now import ApiNow, KeyNow, LearnedNow, LimitNow

_ANY_WIDTH = 10_000


def print_apis(rows: Sequence[ApiNow], console: Console) -> None:
    """Print all APIs: as a table where it fits, else one below the other."""
    table = _apis_table(rows)
    if Measurement.get(console, console.options.update(max_width=_ANY_WIDTH), table).maximum <= console.width:
        console.print(table)
        return
    for number, row in enumerate(rows):
        if number:
            console.print()
        console.print(_api_lines(row))


def _api_lines(row: ApiNow) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    table.add_row("api", f"{row.api}, counted: {_counted(row)}")
    for bound in row.bounds:
        used = "" if bound.used is None else f", {percent(bound.used)} used"
        table.add_row("limit", f"{bound.limit}, {percent(bound.usable)} of it usable{used}")
    workers = f"{row.workers} {'worker' if row.workers == 1 else 'workers'}"
    table.add_row("calls", f"{workers}, {row.in_flight:,} in flight, {row.waiting:,} waiting")
    table.add_row("now", _now(row) or "running")
    return table


def _apis_table(rows: Iterable[ApiNow]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("api", "limits"):
        table.add_column(heading, no_wrap=True)
    table.add_column("of it usable", justify="right")
    table.add_column("counted")
    for heading in ("workers", "in flight", "waiting", "used"):
        table.add_column(heading, justify="right")
    table.add_column("now")
    for row in rows:
        table.add_row(
            row.api,
            "\n".join(row.limits) or "none",
            "\n".join(percent(bound.usable) for bound in row.bounds),
            _counted(row),
            str(row.workers),
            f"{row.in_flight:,}",
            f"{row.waiting:,}",
            "\n".join(percent(bound.used, unknown="") for bound in row.bounds),
            _now(row),
        )
    return table


def hint(rows: Sequence[ApiNow]) -> str | None:
    """Where the reasons are to be read; None where all of every limit is usable."""
    short = [row.api for row in rows if any(bound.why for bound in row.bounds)]
    return f"why not all of a limit is usable: `callmill limits show {short[0]}`" if short else None


def api_details(row: ApiNow) -> Table:
    """One API in full: a word, and what there is to say of it, a line."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for word, line in _details(row):
        table.add_row(word, line)
    return table


def history_table(changes: Iterable[ControlChange]) -> Table:
    """The changes, one a row, times in the zone of this machine."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("when", "who", "what"):
        table.add_column(heading, no_wrap=True)
    for heading in ("from", "to"):
        table.add_column(heading)
    for change in changes:
        what = change.what.value if change.key is None else f"{change.what.value} key {change.key}"
        when = change.at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(when, *map(printable, (change.by, what, change.before, change.after)))
    return table


def percent(share: float | None, *, unknown: str = "?") -> str:
    """Write a share; it is cut, for more would be a promise."""
    if share is None:
        return unknown
    return "100 %" if share >= 0.9995 else f"{math.floor(share * 1000) / 10:.1f} %"


def pause_in_words(left_s: float | None, why: str | None, by: str | None) -> str:
    """Say how long, why, and by whom something is paused."""
    time = "until resumed" if left_s is None else f"for {seconds(left_s)}"
    return printable(f"{time}{f': {why}' if why else ''}{f' ({by})' if by else ''}")


def learned_line(found: LearnedNow) -> str:
    """Say what was learned of a limit, and since when: the time of day here, with the date if it was not today."""
    since, now = (datetime.fromtimestamp(at_s).astimezone() for at_s in (found.since_s, time.time()))
    at = since.strftime("%H:%M" if since.date() == now.date() else "%Y-%m-%d %H:%M")
    return printable(f"{found.words} since {at}{found.more}")


def _counted(row: ApiNow) -> str:
    return row.enforcer if row.burst == 1 else f"{row.enforcer}, burst {row.burst}"


def _now(row: ApiNow) -> str:
    return "\n".join(filter(None, [_state(row), *map(learned_line, row.learned)]))


def _state(row: ApiNow) -> str:
    if row.held:
        return printable(row.held.removeprefix(f"{row.api} is "))
    if row.paused:
        served = f", its calls go to {row.diverted_to}" if row.diverted_to else ""
        return f"paused {pause_in_words(row.paused_s, row.pause_reason, row.paused_by)}{served}"
    if not row.workers:
        return "no worker serves it"
    if row.down:
        return printable(row.down.removeprefix(f"{row.api} is "))
    aside = sum(key.paused_s != 0 for key in row.keys)
    if aside:
        return f"{aside} of {len(row.keys)} keys set aside"
    return f"limited by {row.limited_by}" if row.limited_by else ""


def _details(row: ApiNow) -> Iterator[tuple[str, str]]:
    yield "api", f"{row.api}, {row.base_url}"
    yield "counted", _counted(row)
    if row.profile_limits is not None:
        yield "set", f"at run time, instead of the profile's {', '.join(row.profile_limits) or 'none'}"
    for bound in row.bounds:
        yield "limit", _limit_line(bound)
        if bound.why:
            yield "", bound.why
    for found in row.learned:
        yield "learned", learned_line(found).removeprefix("learned: ")
    yield "now", _state(row) or "running"
    yield "workers", str(row.workers) if row.adopted == row.workers else _lagging(row)
    if row.workers:
        yield "calls", ", ".join(_calls(row))
        yield "guard", _guard_line(row.guard, row.slots_missed)
    for key in row.keys:
        yield "key", _key_line(key)


def _limit_line(bound: LimitNow) -> str:
    parts = [bound.limit]
    if bound.usable is not None:
        parts.append(f"{percent(bound.usable)} of it usable")
    elif bound.why is None:
        parts.append("how much of it is usable no worker has measured yet")
    if bound.pace_per_s is not None:
        parts.append(f"{bound.pace_per_s:,.5g} per second at most")
    if bound.used is not None:
        parts.append(f"{percent(bound.used)} used over the last seconds")
    return ", ".join(parts)


def _lagging(row: ApiNow) -> str:
    return f"{row.workers}, of which {row.adopted} keep the latest change so far"


def _calls(row: ApiNow) -> Iterator[str]:
    yield f"{row.in_flight:,} in flight"
    yield f"{row.waiting:,} waiting"
    yield f"{row.rate:,.1f} per second over the last seconds"
    if row.next_start_s is not None:
        soon = row.next_start_s < 60
        yield f"the next starts in {latency(row.next_start_s) if soon else seconds(row.next_start_s)}"
    if row.retries_held:
        yield f"{row.retries_held:,} retries wait for the retry budget"
    if row.permits is not None:
        yield f"{row.permits:,} permits held"


def _guard_line(guard: Guard | None, slots_missed: int) -> str:
    missed = f"{slots_missed:,} slots missed"
    if guard is None:
        return f"not measured yet; {missed}"
    parts = f"a slot may be late by {latency(guard.validity_s)}"
    if guard.lateness_s or guard.way_s:
        parts += f", lateness of the host {latency(guard.lateness_s)}, way to Redis {latency(guard.way_s)}"
    return f"{latency(guard.total_s)} ({parts}); {missed}"


def _key_line(key: KeyNow) -> str:
    if key.paused_s == 0:
        return f"{key.name}: in use"
    return f"{key.name}: set aside {pause_in_words(key.paused_s, key.reason, key.by)}"
