"""How failures are asked for on the command line, and how they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import click
from rich.table import Table
from rich.text import Text

from callmill.jobs import FailedJob, Failure, FailureCause

where_option = click.option(
    "--where",
    default="",
    metavar="CONDITION",
    help="Only jobs whose latest failure is so: status=500, status=5xx, code=timeout, cause=..., api=..., id=...; "
    "several with commas between them must all hold.",
)

_ANSWER_CHARACTERS = 100


def causes_table(causes: Sequence[FailureCause]) -> Table:
    """Return the causes, one a row; the APIs where there are several."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("jobs", justify="right", no_wrap=True)
    table.add_column("cause", no_wrap=True)
    several = len({cause.api for cause in causes}) > 1
    if several:
        table.add_column("api", no_wrap=True)
    for heading in ("last", "example"):
        table.add_column(heading, no_wrap=True)
    table.add_column("what it says", overflow="fold")
    for cause in causes:
        # Ids and answers are other people's text: no markup.
        cells = [cause.cause, *([cause.api] if several else []), _time(cause.last_at), _plain(cause.example.id)]
        table.add_row(f"{cause.count:,}", *map(Text, cells), Text(_says(cause.example.last)))
    return table


def retry_hint(batch_id: str, causes: Sequence[FailureCause]) -> str:
    """Say how the most frequent cause is shown job by job, and how its jobs are run again."""
    where = f"{batch_id} --where cause={causes[0].cause}"
    return f"job by job: `callmill failures {where} --jobs`; again: `callmill retry {where}`"


def job_line(job: FailedJob) -> str:
    """Return a failed job as one line."""
    last = job.last
    parts = [f"{last.attempts} {'attempt' if last.attempts == 1 else 'attempts'}", _time(last.failed_at)]
    if len(job.failures) > 1:
        parts.append(f"failed {len(job.failures)} times: {', '.join(failure.cause for failure in job.failures)}")
    if not job.failed:
        parts.append("run again since")
    return f"{_plain(job.id)}: {last.cause}: {_says(last)} ({'; '.join(parts)})"


def _says(failure: Failure) -> str:
    answer, message = _plain(failure.answer), _plain(failure.message)
    if len(answer) > _ANSWER_CHARACTERS:
        answer = answer[: _ANSWER_CHARACTERS - 1] + "…"
    return f"{message}: {answer}" if answer else message


def _plain(text: str) -> str:
    """Return other people's text on one line; control characters would steer the terminal."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _time(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
