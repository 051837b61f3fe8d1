"""``callmill run``: a JSONL file of calls in, a JSONL file of outcomes out."""

from __future__ import annotations

from pathlib import Path

import click

from callmill.cli import console
from callmill.cli.asking import confirm, yes_option
from callmill.cli.bare_options import bare_options
from callmill.cli.client_session import with_batches
from callmill.cli.figures import counted
from callmill.cli.input_file import STANDARD_STREAM, path_text
from callmill.cli.job_line import BareBodies
from callmill.cli.run_files import RunFiles
from callmill.cli.run_place import RunPlace
from callmill.cli.run_report import RunReport, render_report
from callmill.cli.run_session import RunSession
from callmill.cli.traffic_options import traffic_options
from callmill.config.settings import load_settings
from callmill.config.short_texts import MOST_OF_NAME, shortened
from callmill.errors import CallmillError
from callmill.jobs.line import traffic_class
from callmill.jobs.traffic import Priority
from callmill.ledger.records import BatchState
from callmill.producer import AsyncClient

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("run")
@click.argument("input_path", metavar="IN.jsonl", type=_FILE)
@click.option("-o", "--output", required=True, type=_FILE, help="Gets one line per job, in the order of finishing.")
@click.option("--errors", type=_FILE, help="Gets the lines of failed jobs and of bad input lines, in place of -o.")
@click.option("--api", help="API of the lines that name none; not needed when only one is known.")
@click.option(
    "--workers", type=click.IntRange(0, 1024), help="Local workers; one per core when neither Redis URL nor `up` is."
)
@click.option("--name", help="What status, watch and dashboard show; the input's name when left out.")
@traffic_options
@bare_options
@click.option("--retry-failed", is_flag=True, help="Run the failed jobs again; their new lines replace the old ones.")
@click.option("--fresh", is_flag=True, help="Begin anew: cancel the earlier run's batch and drop its output.")
@yes_option
@console.json_option
def run(
    *,
    input_path: Path,
    output: Path,
    errors: Path | None,
    api: str | None,
    workers: int | None,
    name: str | None,
    priority: str | None,
    tenant: str | None,
    bare: BareBodies | None,
    retry_failed: bool,
    fresh: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Run the calls of a JSONL file (OpenAI's batch format), or go on where an earlier run of it stopped.

    Whatever is killed, and whenever: repeating the command finishes with exactly one line per custom_id. With
    --retry-failed, failed jobs run again, even those of a finished run. Exit code 0
    when every job succeeded, 1 when some failed or were bad lines, 2 when something must be fixed first.
    """
    if fresh and retry_failed:
        raise click.UsageError("--fresh runs everything again, --retry-failed only the failed jobs: use one of them")
    settings = load_settings()
    traffic = None if priority is tenant is None else traffic_class(priority or Priority.NORMAL, tenant or "")
    with RunPlace(settings, input_path, output, errors, fresh=fresh) as place:
        files = place.files
        _check_stream(place, retry_failed=retry_failed, as_json=as_json)
        identity = place.identity()
        files.check(identity, api, traffic, bare, fresh=fresh)
        if fresh:
            _ask_to_drop(files, yes=yes)
        elif (report := files.report) is not None and not (retry_failed and _can_retry(report)) and _is_over(report):
            place.repeat()
            console.say_line(f"{output}: {_over(report)}")
            _end(report, as_json=as_json)
        session = RunSession(
            settings, files, name=name or _name(input_path), api=api, traffic=traffic, bare=bare, quiet=as_json
        )
        report = session.run(identity, fresh=fresh, workers=workers, retry_failed=retry_failed)
    _end(report, as_json=as_json)


def _check_stream(place: RunPlace, *, retry_failed: bool, as_json: bool) -> None:
    if place.stream is None:
        return
    if retry_failed:
        raise click.UsageError("--retry-failed replaces lines of the output, so it needs a file: name one with -o")
    if as_json and place.stream.is_standard_output:
        raise click.UsageError("--json prints the report where -o - has the outcomes: name a file for one of them")


def _name(path: Path) -> str:
    return "standard input" if path == STANDARD_STREAM else shortened(path_text(Path(path.name)), MOST_OF_NAME)


def _can_retry(report: RunReport) -> bool:
    return report.state == "done" and report.failed > 0


def _is_over(report: RunReport) -> bool:
    """Say whether the batch is as it was reported: jobs that `callmill retry` opened since are to be followed."""

    async def look(client: AsyncClient) -> bool:
        record = await client.connection().batches.record(report.batch_id)
        ended = record.ended or record.state is BatchState.CANCELLED
        return ended and (record.failed, record.calls) == (report.failed, report.calls)

    try:
        return with_batches(look)
    except CallmillError:  # it is gone, or cannot be asked: what was reported is all that is known
        return True


def _over(report: RunReport) -> str:
    """Say that a run is over, and how to run failed jobs again."""
    if not _can_retry(report):
        return f"this run is over ({report.state}). --fresh runs it again."
    return (
        f"this run is over ({report.state}). --retry-failed runs its {counted(report.failed, 'failed job')} again, "
        "--fresh runs everything again."
    )


def _ask_to_drop(files: RunFiles, *, yes: bool) -> None:
    filled = [file for file in files.all if file.length]
    if filled:
        names = " and ".join(f"{file.path} ({file.length:,} bytes)" for file in filled)
        confirm(f"--fresh discards {names} and repeats every call of the input", yes=yes)


def _end(report: RunReport, *, as_json: bool) -> None:
    if as_json:
        console.print_json(report)
    else:
        console.stderr().print(render_report(report))
    raise SystemExit(0 if report.all_succeeded else 1)
