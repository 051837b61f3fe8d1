"""Whether a run's calls go where they should: the APIs of its batch must be those of the local profiles."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from callmill.cli.input_file import read_lines
from callmill.cli.job_line import BadLineError, BareBodies, parse_job
from callmill.errors import JobError
from callmill.ledger.api_bindings import ApiBindings, other_api
from callmill.producer import AsyncClient
from callmill.producer.submission import publish_hints

_LINES_CHECKED = 1_000
"""Of an input: a run that stops at a later line has lost nothing, it can continue from there."""


async def check_apis(client: AsyncClient, path: Path, api: str | None, bare: BareBodies | None) -> None:
    """Check the first lines of an input before anything starts.

    Raises:
        ApiMismatchError: Workers serve another API of a name than the local profiles describe.
    """
    known = await client.known_apis()
    for line in islice(read_lines(path), _LINES_CHECKED):
        try:
            known.find(parse_job(line, api, bare).api, 0)
        except (BadLineError, JobError):
            continue  # reported when the input is read


async def continue_bound(client: AsyncClient, batch_id: str, *, own_workers: bool, calls_again: bool) -> None:
    """Continue a batch only if its APIs are those of the local profiles.

    A batch that was begun by an older Callmill, or with the workers of a fleet, is now bound to them, so that the
    workers of this run serve it. A move that was interrupted is completed.

    Args:
        client: The producer's client.
        batch_id: The batch.
        own_workers: Whether the run has its own workers.
        calls_again: Whether jobs of an ended batch run again.

    Raises:
        ApiMismatchError: It was made for another API of a name.
    """
    connection, known = client.connection(), await client.known_apis()
    bindings = ApiBindings(connection.session)
    record = await connection.batches.record(batch_id)
    if record.ended and not calls_again:
        return
    for api in record.apis:
        here, there = known.bound_to(api), record.bound_to.get(api)
        if here is not None and there is not None and here.identity != there.identity:
            raise other_api(f"this run's batch {batch_id}", api, there, here)
        if here is None or not own_workers or (there is not None and record.own_lines):
            continue
        await bindings.bind(batch_id, api, here, own_lines=True)
    if refs := await bindings.follow(batch_id):
        await publish_hints(connection.hints, refs, record.name)
