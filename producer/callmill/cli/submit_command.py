"""``callmill submit``: a JSONL file becomes a batch, all of it or nothing."""

from __future__ import annotations

from pathlib import Path

import click

from callmill.cli import console
from callmill.cli.bare_options import bare_options
from callmill.cli.client_session import with_client
from callmill.cli.default_api import default_api, reason
from callmill.cli.input_file import open_any, path_text, read_lines
from callmill.cli.job_line import EXAMPLE, BadLineError, BareBodies, parse_job
from callmill.cli.traffic_options import traffic_options
from callmill.config.short_texts import MOST_OF_NAME, shortened
from callmill.errors import InputFileError, JobError
from callmill.jobs.line import traffic_class
from callmill.jobs.traffic import Priority, TrafficClass
from callmill.producer import AsyncClient


@click.command("submit")
@click.argument("input_path", metavar="IN.jsonl", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--api", help="API of the lines that name none; not needed when only one is known.")
@click.option("--name", help="What status, watch and dashboard show; the input's name when left out.")
@traffic_options
@bare_options
@console.json_option
def submit(
    *,
    input_path: Path,
    api: str | None,
    name: str | None,
    priority: str | None,
    tenant: str | None,
    bare: BareBodies | None,
    as_json: bool,
) -> None:
    """Submit a JSONL file of calls as one batch and print its id. One bad line, and nothing is submitted."""
    console.say_warnings(console.say_line)
    traffic = traffic_class(priority or Priority.NORMAL, tenant or "")
    batch_id, jobs = with_client(
        lambda client: _submit(
            client,
            input_path,
            api=api,
            name=name or shortened(path_text(Path(input_path.name)), MOST_OF_NAME),
            traffic=traffic,
            bare=bare,
        )
    )
    if as_json:
        console.print_json({"id": batch_id, "jobs": jobs})
    else:
        click.echo(batch_id)


async def _submit(
    client: AsyncClient, path: Path, *, api: str | None, name: str, traffic: TrafficClass, bare: BareBodies | None
) -> tuple[str, int]:
    api = await default_api(client, api)
    submission = await client.open_submission(name=name, priority=traffic.priority, tenant=traffic.tenant)
    jobs = 0
    try:
        for line in read_lines(path, open_any):
            try:
                due = submission.add(parse_job(line, api, bare))
            except (BadLineError, JobError) as error:
                raise _refusal(path, line.number, error) from error
            jobs += 1
            if due:
                await submission.flush()
        await submission.seal()
    except BaseException:
        await submission.discard()
        raise
    return submission.batch_id, jobs


def _refusal(path: Path, number: int, error: BadLineError | JobError) -> InputFileError:
    form = f"; a line is like {EXAMPLE}" if getattr(error, "is_of_another_form", False) else ""
    return InputFileError(f"{path}: line {number}: {reason(error)}{form}; nothing was submitted")
