"""``callmill run``: a JSONL file of calls in, a JSONL file of outcomes out."""

from __future__ import annotations

from pathlib import Path

import click

from callmill.cli import console
from callmill.cli.input_file import InputIdentity
from callmill.cli.run_files import RunFiles
from callmill.cli.run_report import RunReport, render_report
from callmill.cli.run_session import RunSession
from callmill.cli.traffic_options import traffic_options
from callmill.config.settings import load_settings
from callmill.jobs.line import traffic_class
from callmill.jobs.traffic import Priority

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
@click.option("--fresh", is_flag=True, help="Begin anew: cancel the earlier run's batch and drop its output.")
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
    fresh: bool,
    as_json: bool,
) -> None:
    """Run the calls of a JSONL file (OpenAI's batch format), or go on where an earlier run of it stopped.

    Whatever is killed and whenever: the same command again finishes with exactly one line per custom_id. Exit code 0
    when every job succeeded, 1 when some failed or were bad lines, 2 when something must be mended first.
    """
    settings = load_settings()
    traffic = None if priority is tenant is None else traffic_class(priority or Priority.NORMAL, tenant or "")
    identity = InputIdentity.of(input_path)
    with RunFiles(output, errors) as files:
        files.check(identity, api, traffic, fresh=fresh)
        if files.state is not None and files.state.report is not None and not fresh:
            how = files.state.report.state
            console.say_line(f"{output}: this run is over ({how}). --fresh runs it again.")
            _end(files.state.report, as_json=as_json)
        session = RunSession(settings, files, name=name or input_path.name, api=api, traffic=traffic, quiet=as_json)
        report = session.run(identity, fresh=fresh, workers=workers)
    _end(report, as_json=as_json)


def _end(report: RunReport, *, as_json: bool) -> None:
    if as_json:
        console.print_json(report)
    else:
        console.stderr().print(render_report(report))
    raise SystemExit(0 if report.all_succeeded else 1)
